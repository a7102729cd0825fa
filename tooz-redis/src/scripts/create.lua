-- Creates a group, as Python does.
-- KEYS: group, groups. ARGV: NS, 0, group, base, fresh
local g = group(KEYS[1], ARGV[4])
if exists(g) then return { 'exists', redis.call('HGET', g.m, 'i') or '' } end
redis.call('SADD', KEYS[2], ARGV[3])
redis.call('HSET', g.key, MARK, '1')
redis.call('DEL', g.m)
known(g, ARGV[5])
return { 'ok' }
