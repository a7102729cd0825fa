-- Who holds a lock, and how many wait.
-- KEYS: Python's key, h, q, w, fence. ARGV: NS, 0, keep, base
local l = read(lock(KEYS[1], ARGV[4]))
advance(l, ARGV[3])
finish(l)
return shown_holders(l)
