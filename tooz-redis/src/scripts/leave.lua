-- Leaves a group. A join that is still on its way comes too late.
-- KEYS: group, m, session. ARGV: NS, sender, session, member, base, group
local refusal = refused(KEYS[3])
if refusal then return { refusal } end
local g, member = group(KEYS[1], ARGV[5]), ARGV[4]
redis.call('HDEL', KEYS[3], 'g' .. ARGV[6])
if not exists(g) then return { 'nogroup' } end
local r = record(redis.call('HGET', g.m, 'm' .. member))
if not r or r.session ~= ARGV[3] or (member ~= MARK and redis.call('HEXISTS', g.key, member) == 0) then
  return { 'nomember' }
end
drop(g, member, 'Q')
return { 'ok' }
