-- The holders of a lock and the number of waiters, for a view. Nothing is written: dead holders are left out, not removed.
-- KEYS: Python's key, h, q, w, fence. ARGV: NS, 0, keep, base
local l = look(lock(KEYS[1], ARGV[4]))
for _, one in ipairs(l.gone) do l.holders[one[1]] = nil end
local answer = { redis.call('ZCARD', l.q), l.foreign and 1 or 0, redis.call('PTTL', l.key) }
for _, h in pairs(l.holders) do
  answer[#answer + 1] = { h.token, h.since, h.mode, h.limit, h.member }
end
return answer
