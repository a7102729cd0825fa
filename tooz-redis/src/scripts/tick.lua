-- What a watcher asks every second: the number of the last change, and a digest of what Python sees, which tells of changes by
-- Python, with the number for which it was computed. Dead members are taken out on the way. However many watch, and however
-- often the group changes, it is read once a second: a change leaves the digest as it is, and watchers remember their own.
-- KEYS: group, m, epoch. ARGV: NS, 0, base, fresh
local g = group(KEYS[1], ARGV[3])
if not exists(g) then
  redis.call('DEL', g.m)
  return { 'nogroup', redis.call('GET', KEYS[3]) or '' }
end
known(g, ARGV[4])
local last = tonumber(redis.call('HGET', g.m, 't') or '')
if not last or now < last or now - last >= 900 then
  local sum = digest(members(g))
  redis.call('HSET', g.m, 't', num(now), 'd', sum, 'D', redis.call('HGET', g.m, 'v'))
end
local r = redis.call('HMGET', g.m, 'v', 'i', 'D', 'd')
return { 'ok', redis.call('GET', KEYS[3]) or '', r[1], r[2], r[3], r[4] }
