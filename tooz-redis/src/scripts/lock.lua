-- One lock. Python's key holds a random word, the generation; `h` of ours is a hash with the generation (g), the queue's last
-- number (n), how the last holder ended if uncleanly (p), and a record for each holder under its attempt; `q` orders the
-- attempts that wait, `w` says what they want.
--
-- INVARIANT: one of our sessions holds the lock exactly if Python's key is our generation, the holder's record has not
-- expired, and its session lives. So the lock is never free for Python while one of ours holds it, nor the other way round.
local FENCE = OWN .. 'fence'
local LARGEST = 9007199254740991

local function lock(key, base)
  return { key = key, base = base, h = base .. 'h', q = base .. 'q', w = base .. 'w' }
end

local function holder(text)
  local expires, token, since, mode, limit, id, previous, member =
    string.match(text, '^(%d+) (%d+) (%d+) (%a) (%d+) (%x+) (%a) (.*)$')
  if not expires then return nil end
  if mode == 'p' and (tonumber(limit) < 1 or tonumber(limit) > 4294967295) then return nil end
  return { expires = tonumber(expires), token = token, since = since, mode = mode, limit = limit, session = id,
    previous = previous, member = member }
end

local function written(h)
  return table.concat({ num(h.expires), h.token, h.since, h.mode, h.limit, h.session, h.previous, h.member }, ' ')
end

local function waiter(l, attempt)
  local text = redis.call('HGET', l.w, attempt)
  if not text then return nil end
  local mode, limit, id, member = string.match(text, '^(%a) (%d+) (%x+) (.*)$')
  if not mode then return nil end
  return { mode = mode, limit = limit, session = id, member = member }
end

-- Records how the last holder ended. A break is kept when another holder expires afterwards.
local RANK = { B = 3, E = 2, U = 1 }
local function mark(l, how)
  if (RANK[l.p] or 0) >= RANK[how] then return end
  l.p = how
  redis.call('HSET', l.h, 'p', how)
end

-- Removes a holder; the caller records how it ended.
local function remove(l, attempt)
  redis.call('HDEL', session(l.holders[attempt].session), 'k' .. attempt)
  redis.call('HDEL', l.h, attempt)
  l.holders[attempt] = nil
  l.count = l.count - 1
  l.changed = true
  if l.count == 0 and not l.foreign then
    redis.call('DEL', l.key)
    l.value = false
  end
end

local function unqueue(l, attempt)
  redis.call('HDEL', l.w, attempt)
  return redis.call('ZREM', l.q, attempt) == 1
end

-- Reads the lock and writes nothing. `gone` lists the holders that hold it no more, with session and reason; `odd` lists the
-- fields that are not records.
local function look(l)
  l.holders, l.count, l.gone, l.odd, l.value = {}, 0, {}, {}, redis.call('GET', l.key)
  local all = redis.call('HGETALL', l.h)
  for i = 1, #all, 2 do
    if #all[i] == 32 then
      local h = holder(all[i + 1])
      if h then
        l.holders[all[i]] = h
        l.count = l.count + 1
      else
        l.odd[#l.odd + 1] = all[i]
      end
    elseif all[i] == 'g' or all[i] == 'n' or all[i] == 'p' then
      l[all[i]] = all[i + 1]
    end
  end
  l.foreign = l.value and l.value ~= l.g
  for attempt, h in pairs(l.holders) do
    local why
    if h.expires <= now or not alive(h.session) then
      why = 'E'
    elseif l.value ~= l.g then
      why = 'V'
    end
    if why then l.gone[#l.gone + 1] = { attempt, h.session, why } end
  end
  return l
end

-- Reads the lock and removes holders that hold it no more. A message tells them, before a newer grant is made.
local function read(l)
  look(l)
  for _, field in ipairs(l.odd) do redis.call('HDEL', l.h, field) end
  for _, one in ipairs(l.gone) do
    remove(l, one[1])
    mark(l, 'E')
    tell(one[2], 'X ' .. one[1] .. ' ' .. one[3])
  end
  -- A Python process held the lock meanwhile: how that ended is unknown.
  if l.foreign and l.p then
    l.p = 'U'
    redis.call('HSET', l.h, 'p', 'U')
  end
  -- Our generation without any holder: delete it, or the lock stays taken until it expires.
  if l.value and not l.foreign and l.count == 0 then
    redis.call('DEL', l.key)
    l.value = false
  end
  return l
end

-- Whether the lock may be granted in this mode beside its holders.
local function fits(l, mode, limit)
  if l.foreign then return false end
  for _, h in pairs(l.holders) do
    if mode == 'x' or h.mode ~= mode then return false end
  end
  return mode ~= 'p' or l.count < tonumber(limit)
end

-- The last token. "nan", a number to Lua, fails the comparison with LARGEST.
local function counter()
  local last = tonumber(redis.call('GET', FENCE) or '0')
  if not last or not (last < LARGEST) then error('CORRUPT ' .. FENCE) end
  return last
end

-- INVARIANT: the token is larger than every earlier one of this namespace. If the counter was lost, the server's clock in
-- microseconds is above all earlier tokens, unless the counter had been raised above the clock.
local function token()
  local next = num(math.max(counter() + 1, micros))
  redis.call('SET', FENCE, next)
  return next
end

local function keep(l, time)
  redis.call('PEXPIRE', l.h, time)
  redis.call('PEXPIRE', l.q, time)
  redis.call('PEXPIRE', l.w, time)
end

local function grant(l, attempt, want, life, time)
  local h = { expires = now + life, token = token(), since = num(micros), mode = want.mode, limit = want.limit,
    session = want.session, previous = l.p or 'C', member = want.member }
  if l.count == 0 then
    redis.call('SET', l.key, attempt, 'PX', num(life))
    redis.call('HSET', l.h, 'g', attempt)
    l.value, l.g = attempt, attempt
  elseif redis.call('PTTL', l.key) < life then
    redis.call('PEXPIRE', l.key, num(life))
  end
  if l.p then
    redis.call('HDEL', l.h, 'p')
    l.p = nil
  end
  redis.call('HSET', l.h, attempt, written(h))
  redis.call('HSET', session(want.session), 'k' .. attempt, pair(l.key, l.base))
  l.holders[attempt] = h
  l.count = l.count + 1
  l.changed = true
  keep(l, time)
  return h
end

-- Grants the lock to waiters, from the front of the queue.
--
-- INVARIANT: only a living session is granted anything, for no longer than that session is known to live: a waiter that died
-- blocks no other beyond its session's end. The message names the session's last beat, from whose sending the grant's deadline
-- counts; the message itself proves nothing about time.
local function advance(l, time)
  while true do
    local head = redis.call('ZRANGE', l.q, 0, 0)[1]
    if not head then return end
    local want = waiter(l, head)
    local life = want and redis.call('PTTL', session(want.session)) or 0
    if life <= 0 then
      unqueue(l, head)
    elseif fits(l, want.mode, want.limit) then
      unqueue(l, head)
      local h = grant(l, head, want, life, time)
      local beat = redis.call('HGET', session(want.session), 'b') or '0'
      tell(want.session, table.concat({ 'G', head, h.token, h.previous, beat }, ' '))
    else
      return
    end
  end
end

-- Ends a change: deletes the records of a lock without holders and waiters, and tells watchers to look again.
local function finish(l)
  if l.count == 0 and not l.p and redis.call('ZCARD', l.q) == 0 then
    redis.call('DEL', l.h, l.q, l.w)
  end
  if l.changed then publish(l.base .. 'c', '1') end
end

-- How many wait, 'f' and the value of Python's key where Python holds it, and the holders, as they are answered.
local function shown_holders(l)
  local answer = { redis.call('ZCARD', l.q), l.foreign and 'f' .. l.value or '' }
  for _, h in pairs(l.holders) do answer[#answer + 1] = { h.token, h.since, h.mode, h.limit, h.member } end
  return answer
end

local function granted(h)
  return { 'granted', h.token, h.previous, num(h.expires - now) }
end

local function queued(l, attempt)
  return { 'queued', l.foreign and 1 or 0, redis.call('PTTL', l.key), redis.call('ZRANK', l.q, attempt) }
end
