-- Asks for a lock: granted, queued, or held by another session, in one step. If the same attempt is sent again, the script
-- returns its present state; ARGV[9] = 'look' only does that.
-- KEYS: Python's key, h, q, w, session, fence. ARGV: NS, sender, attempt, session, mode, limit, ttl, keep, wish, base, member
local refusal = refused(KEYS[5])
if refusal then return { refusal } end
local attempt, id, mode, limit, ttl, time, wish = ARGV[3], ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8], ARGV[9]
local l = read(lock(KEYS[1], ARGV[10]))
if l.holders[attempt] then
  -- Writes in any case: replicas acknowledge writes only.
  keep(l, time)
  finish(l)
  return granted(l.holders[attempt])
end
local waits = redis.call('ZSCORE', l.q, attempt)
if mode == 'p' and not waits then
  local other
  for _, h in pairs(l.holders) do
    if h.mode == 'p' and h.limit ~= limit then other = h.limit end
  end
  local waiters = redis.call('HGETALL', l.w)
  for i = 1, #waiters, 2 do
    local its_mode, its_limit, its_session = string.match(waiters[i + 1], '^(%a) (%d+) (%x+)')
    if its_mode == 'p' and its_limit ~= limit then
      -- Only `advance` removes dead waiters otherwise, and only the first ones: a dead one must not refuse a request.
      if alive(its_session) then other = its_limit else unqueue(l, waiters[i]) end
    end
  end
  if other then
    finish(l)
    return { 'limit', other }
  end
end
advance(l, time)
if l.holders[attempt] then
  finish(l)
  return granted(l.holders[attempt])
end
if waits then
  finish(l)
  return queued(l, attempt)
end
local want = { mode = mode, limit = limit, session = id, member = ARGV[11] }
if wish == 'look' then
  finish(l)
  return { 'gone' }
elseif redis.call('ZCARD', l.q) == 0 and fits(l, mode, limit) then
  local h = grant(l, attempt, want, ttl, time)
  finish(l)
  return granted(h)
elseif wish == 'try' then
  finish(l)
  return { 'held' }
end
redis.call('ZADD', l.q, redis.call('HINCRBY', l.h, 'n', 1), attempt)
redis.call('HSET', l.w, attempt, table.concat({ mode, limit, id, want.member }, ' '))
redis.call('HSET', KEYS[5], 'k' .. attempt, pair(l.key, l.base))
keep(l, time)
finish(l)
return queued(l, attempt)
