-- Opens a session, after ending the coordinator's earlier one. The epoch is made with the first session: whoever finds another one
-- knows that the data was lost.
-- KEYS: session, epoch, beat. ARGV: NS, sender, session, ttl, fresh, previous or '', keep, member
if ARGV[6] ~= '' then
  end_session(ARGV[6], 'E', ARGV[7])
  if redis.call('GET', KEYS[3]) == 'rs:' .. ARGV[6] then redis.call('DEL', KEYS[3]) end
end
if redis.call('SET', KEYS[2], ARGV[5], 'NX') then publish(OWN .. 'epoch', ARGV[5]) end
redis.call('HSET', KEYS[1], 'e', sender, 'b', 0, 'm', ARGV[8])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return { redis.call('GET', KEYS[2]), num(now) }
