-- The living members of a group, or one of them: ARGV[5].
-- KEYS: group, m, epoch. ARGV: NS, 0, base, fresh, member or ''
local g = group(KEYS[1], ARGV[3])
if not exists(g) then
  -- Python deleted it.
  redis.call('DEL', g.m)
  return { 'nogroup', redis.call('GET', KEYS[3]) or '' }
end
known(g, ARGV[4])
local list = shown(members(g), ARGV[5])
return { 'ok', redis.call('GET', KEYS[3]) or '', redis.call('HGET', g.m, 'v'), redis.call('HGET', g.m, 'i'), list }
