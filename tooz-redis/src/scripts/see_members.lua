-- The living members of a group, or one of them, for a view: nothing is written. A group that Python made has no number and
-- no id as long as none of ours has read it.
-- KEYS: group, m, epoch. ARGV: NS, 0, base, fresh, member or ''
local g = group(KEYS[1], ARGV[3])
local epoch = redis.call('GET', KEYS[3]) or ''
if not exists(g) then return { 'nogroup', epoch } end
local list = shown(living(g), ARGV[5])
return { 'ok', epoch, redis.call('HGET', g.m, 'v') or '0', redis.call('HGET', g.m, 'i') or '', list }
