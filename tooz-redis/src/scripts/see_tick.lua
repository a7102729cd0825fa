-- As tick.lua, for a view: nothing is written, so the digest is that of another watcher, or is made for this one.
-- KEYS: group, m, epoch. ARGV: NS, 0, base, fresh
local g = group(KEYS[1], ARGV[3])
local epoch = redis.call('GET', KEYS[3]) or ''
if not exists(g) then return { 'nogroup', epoch } end
local r = redis.call('HMGET', g.m, 'v', 'i', 'D', 'd', 't')
local last = tonumber(r[5] or '')
if not last or now < last or now - last >= 900 then
  local found = living(g)
  r[3], r[4] = r[1] or '0', digest(found)
end
return { 'ok', epoch, r[1] or '0', r[2] or '', r[3], r[4] }
