-- Begins every script. ARGV[1] is the namespace as it stands in keys, ARGV[2] the number of the connection that sent it, an @,
-- and the number of the database.
--
-- INVARIANT: a number never becomes text through `..` or tostring(), which keep 14 digits (tokens of two grants within 100 µs
-- would be equal); num() keeps all 16.
local NS = ARGV[1]
local sender, database = string.match(ARGV[2], '^(%d+)@?(%d*)$')
local SENDER = tonumber(sender)
local OWN = NS .. '_rs:'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local micros = time[1] * 1000000 + time[2]

local function num(n)
  return string.format('%.0f', n)
end

local function session(id)
  return OWN .. 's:' .. id
end

local function alive(id)
  return redis.call('EXISTS', session(id)) == 1
end

-- Sessions cannot be listed in a script; what says that some live is a key that lives as long as the longest of them. Its value
-- is their layout, and the member that prolonged it last.
local function say_alive(key, layout, member, ttl)
  if redis.call('PTTL', key) < tonumber(ttl) then redis.call('SET', key, layout .. ' ' .. member, 'PX', ttl) end
end

-- Keys are a database's own, channels are the server's: those of another database than the first are named after it.
local function publish(channel, message)
  if database ~= '' and database ~= '0' then channel = channel .. '@' .. database end
  redis.call('PUBLISH', channel, message)
end

-- A word to the coordinator of a session.
local function tell(id, message)
  publish(OWN .. 'i:' .. id, message)
end

-- Two byte strings in one, without a separator that either may contain.
local function pair(a, b)
  return string.format('%d:', #a) .. a .. b
end

local function unpair(text)
  local length, at = string.match(text, '^(%d+):()')
  if not length then return nil end
  return string.sub(text, at, at + length - 1), string.sub(text, at + length)
end

-- Why a request of a session must be refused; nil: it may run.
--
-- INVARIANT: a request from an older connection is refused once the session sent a request over a newer one. After a lost
-- connection the session cleans up over the next one, so a late request must not take effect afterwards.
local function refused(key)
  local newest = tonumber(redis.call('HGET', key, 'e') or '')
  if not newest then return 'lost' end
  if SENDER < newest then return 'late' end
  if SENDER > newest then redis.call('HSET', key, 'e', num(SENDER)) end
  return nil
end
