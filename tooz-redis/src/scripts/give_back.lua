-- Takes an attempt of this session out, compared on the attempt, and hands the lock on. What of this attempt is still on its way
-- comes too late, since its connection is older than this one.
-- KEYS: Python's key, h, q, w, session, fence. ARGV: NS, sender, attempt, session, keep, base, how it ended if uncleanly or ''
local function give_back(place_too)
  refused(KEYS[5])
  local attempt, id = ARGV[3], ARGV[4]
  local l = read(lock(KEYS[1], ARGV[6]))
  local h = l.holders[attempt]
  local found = 0
  if h and h.session == id then
    remove(l, attempt)
    local how = ARGV[7]
    -- The grant was never used: the next holder is told about the holder before it.
    if place_too and h.previous ~= 'C' then how = h.previous end
    if how ~= '' then
      mark(l, how)
      keep(l, ARGV[5])
    end
    found = 1
  end
  if place_too then
    unqueue(l, attempt)
    redis.call('HDEL', KEYS[5], 'k' .. attempt)
  end
  advance(l, ARGV[5])
  finish(l)
  return found
end
