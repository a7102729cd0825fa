-- Takes a lock from its holders, says so to them, and hands it on. Who and why stays under the broken grant, for a victim that
-- cannot be told.
-- KEYS: Python's key, h, q, w, fence. ARGV: NS, 0, keep, base, whom, by, why. Whom: everyone (''), a token, or 'f' and what
-- Python's key holds.
local l = read(lock(KEYS[1], ARGV[4]))
local answer, told = {}, pair(ARGV[6], ARGV[7])
for attempt, h in pairs(l.holders) do
  if ARGV[5] == '' or ARGV[5] == h.token then
    remove(l, attempt)
    mark(l, 'B')
    redis.call('SET', OWN .. 'x:' .. attempt, told, 'PX', ARGV[3])
    tell(h.session, 'B ' .. attempt .. ' ' .. told)
    answer[#answer + 1] = { h.token, h.since, h.mode, h.limit, h.member }
  end
end
if l.foreign and (ARGV[5] == '' or ARGV[5] == 'f' .. l.value) then
  redis.call('DEL', l.key)
  l.value, l.foreign, l.changed = false, false, true
  mark(l, 'B')
  answer[#answer + 1] = { '', '', 'x', '0', '' }
end
if l.p then keep(l, ARGV[3]) end
advance(l, ARGV[3])
finish(l)
return answer
