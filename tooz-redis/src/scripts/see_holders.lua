-- The holders of a lock and the number of waiters, for a view. Nothing is written: dead holders are left out, not removed.
-- KEYS: Python's key, h, q, w, fence. ARGV: NS, 0, keep, base
local l = look(lock(KEYS[1], ARGV[4]))
for _, one in ipairs(l.gone) do l.holders[one[1]] = nil end
return shown_holders(l)
