-- Called by each watcher every second. Returns the number of the last change, and a digest of Python's keys with the number for
-- which it was computed; the digest shows changes by Python. Removes dead members. However many watchers call and however often
-- the group changes, the script reads the group once a second: a change keeps the digest, and each watcher remembers its own.
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
