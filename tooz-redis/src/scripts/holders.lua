-- Who holds a lock, and how many wait.
-- KEYS: Python's key, h, q, w, fence. ARGV: NS, 0, keep, base
local l = read(lock(KEYS[1], ARGV[4]))
advance(l, ARGV[3])
finish(l)
local answer = { redis.call('ZCARD', l.q), l.foreign and 1 or 0, redis.call('PTTL', l.key) }
for _, h in pairs(l.holders) do
  answer[#answer + 1] = { h.token, h.since, h.mode, h.limit, h.member }
end
return answer
