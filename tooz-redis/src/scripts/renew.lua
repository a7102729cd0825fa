-- One beat: renews the session and its grants, places and memberships, and returns those that are missing. It never makes a
-- missing session or grant again.
-- KEYS: session, epoch, beat, lives, then of each grant and each place its Python's key, h, q, w, then of each group its hash and m.
-- ARGV: NS, sender, session, ttl, keep, number, epoch, member, grants, places, groups, layout, then of each grant and place its attempt
-- and base
local id, ttl, time = ARGV[3], tonumber(ARGV[4]), ARGV[5]
local refusal = refused(KEYS[1])
if refusal == 'lost' then
  return { 'lost', redis.call('GET', KEYS[2]) == ARGV[7] and 'E' or 'V' }
elseif refusal then
  return { refusal }
end
-- The first write is one that a server without memory accepts, so that those after it are accepted, too.
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('HSET', KEYS[1], 'b', ARGV[6])
say_alive(KEYS[4], ARGV[12], ARGV[8], ttl)
if redis.call('HEXISTS', KEYS[1], 'c') == 1 then
  local claimed = owner(redis.call('GET', KEYS[3]))
  if not claimed or claimed == id or not alive(claimed) then redis.call('SET', KEYS[3], 'rs:' .. id, 'PX', ttl) end
end

local gone, granted, unqueued, evicted = {}, {}, {}, {}
local at, arg = 5, 13

local function prolong(l, attempt)
  local text = redis.call('HGET', l.h, attempt)
  local h = text and holder(text)
  local value = h and redis.call('GET', l.key)
  if not h or h.expires <= now or not value or value ~= redis.call('HGET', l.h, 'g') then return nil, h end
  h.expires = math.max(h.expires, now + ttl)
  redis.call('HSET', l.h, attempt, written(h))
  if h.mode == 'x' or redis.call('PTTL', l.key) < ttl then redis.call('PEXPIRE', l.key, ttl) end
  redis.call('PEXPIRE', l.h, time)
  return h
end

local function next_lock()
  local attempt, l = ARGV[arg], lock(KEYS[at], ARGV[arg + 1])
  at, arg = at + 4, arg + 2
  return attempt, l
end

for _ = 1, tonumber(ARGV[9]) do
  local attempt, l = next_lock()
  local h, dead = prolong(l, attempt)
  if not h then
    local broken = redis.call('GET', OWN .. 'x:' .. attempt)
    if broken then
      gone[#gone + 1] = { attempt, 'B', broken }
    else
      gone[#gone + 1] = { attempt, dead and dead.expires <= now and 'E' or 'V', '' }
    end
    read(l)
    advance(l, time)
    finish(l)
  end
end
for _ = 1, tonumber(ARGV[10]) do
  local attempt, l = next_lock()
  if redis.call('ZSCORE', l.q, attempt) then
    keep(l, time)
  else
    local h = prolong(l, attempt)
    if h then
      granted[#granted + 1] = { attempt, h.token, h.previous }
    else
      unqueued[#unqueued + 1] = attempt
    end
  end
end
local member = ARGV[8]
for n = 1, tonumber(ARGV[11]) do
  local r = record(redis.call('HGET', KEYS[at + 1], 'm' .. member))
  local there = redis.call('HEXISTS', KEYS[at], member == MARK and MARK or member) == 1
  if not there or not r or r.session ~= id then evicted[#evicted + 1] = n end
  at = at + 2
end
-- Heard by the coordinator over its other connection, it proves that messages come through there.
tell(id, 'b ' .. ARGV[6])
return { 'ok', num(now), gone, granted, unqueued, evicted }
