-- Raises the counter of tokens, unless it is higher. It writes in any case: that is what replicas acknowledge.
-- KEYS: fence. ARGV: NS, 0, the number that the counter has at least
redis.call('SET', FENCE, num(math.max(counter(), tonumber(ARGV[3]))))
return 1
