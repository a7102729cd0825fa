-- Ends a session and everything that hangs on it.
-- KEYS: session, beat. ARGV: NS, sender, session, keep, how what it held ended if uncleanly or ''
end_session(ARGV[3], ARGV[5] ~= '' and ARGV[5], ARGV[4])
if redis.call('GET', KEYS[2]) == 'rs:' .. ARGV[3] then redis.call('DEL', KEYS[2]) end
return 1
