-- Publishes other capabilities.
-- KEYS: group, m, session. ARGV: NS, sender, session, member, base, capabilities
local refusal = refused(KEYS[3])
if refusal then return { refusal } end
local g, member = group(KEYS[1], ARGV[5]), ARGV[4]
if not exists(g) then return { 'nogroup' } end
local r = record(redis.call('HGET', g.m, 'm' .. member))
if not r or r.session ~= ARGV[3] or (member ~= MARK and redis.call('HEXISTS', g.key, member) == 0) then
  return { 'nomember' }
end
r.updated = num(micros)
put(g, member, r, ARGV[6], 'U')
return { 'ok' }
