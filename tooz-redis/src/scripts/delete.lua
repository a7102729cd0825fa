-- Deletes a group without living members.
-- KEYS: group, groups, m. ARGV: NS, 0, group, base
local g = group(KEYS[1], ARGV[4])
if not exists(g) then return { 'nogroup' } end
local found = #members(g)
if found > 0 then return { 'members', found } end
changed(g, 'D')
redis.call('SREM', KEYS[2], ARGV[3])
redis.call('DEL', g.key, g.m)
return { 'ok' }
