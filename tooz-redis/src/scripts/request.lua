-- Asks for a lock: granted, queued, or held by another session, in one step. If the same attempt is sent again, the script
-- returns its present state; ARGV[9] = 'look' only does that.
-- KEYS: Python's key, h, q, w, session, fence. ARGV: NS, sender, attempt, session, mode, limit, ttl, keep, wish, base, member
local refusal = refused(KEYS[5])
if refusal then return { refusal } end
local attempt, id, mode, limit, ttl, time, wish = ARGV[3], ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8], ARGV[9]
local l = read(lock(KEYS[1], ARGV[10]))

-- The limit of another permit that is held or waited for.
local function other_limit()
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
  return other
end

local function answer()
  if l.holders[attempt] then
    -- Writes in any case: replicas acknowledge writes only.
    keep(l, time)
    return granted(l.holders[attempt])
  end
  local waits = redis.call('ZSCORE', l.q, attempt)
  local other = mode == 'p' and not waits and other_limit()
  if other then return { 'limit', other } end
  advance(l, time)
  if l.holders[attempt] then return granted(l.holders[attempt]) end
  if waits then return queued(l, attempt) end
  if wish == 'look' then return { 'gone' } end
  local want = { mode = mode, limit = limit, session = id, member = ARGV[11] }
  if redis.call('ZCARD', l.q) == 0 and fits(l, mode, limit) then return granted(grant(l, attempt, want, ttl, time)) end
  if wish == 'try' then return { 'held' } end
  redis.call('ZADD', l.q, redis.call('HINCRBY', l.h, 'n', 1), attempt)
  redis.call('HSET', l.w, attempt, table.concat({ mode, limit, id, want.member }, ' '))
  redis.call('HSET', KEYS[5], 'k' .. attempt, pair(l.key, l.base))
  keep(l, time)
  return queued(l, attempt)
end

local answered = answer()
finish(l)
return answered
