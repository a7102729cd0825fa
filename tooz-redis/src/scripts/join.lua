-- Joins a group, and claims the member id in the same step.
-- KEYS: group, groups, m, session, beat. ARGV: NS, sender, session, member, capabilities, create, incarnation, fresh, ttl, group,
-- base, previous
local refusal = refused(KEYS[4])
if refusal then return { refusal } end
local id, member = ARGV[3], ARGV[4]
local g = group(KEYS[1], ARGV[11])
local there = exists(g)
if not there and ARGV[6] == '0' then return { 'nogroup' } end
-- INVARIANT: no session claims the id of another living session. Our beats name their session; any other beat is Python's, and
-- its member lives.
local function strange(other)
  return other ~= id and other ~= ARGV[12] and alive(other)
end
local beat = redis.call('GET', KEYS[5])
local claimed = owner(beat)
if beat and (not claimed or strange(claimed)) then return { 'taken' } end
local r = there and record(redis.call('HGET', g.m, 'm' .. member))
local field = there and (redis.call('HEXISTS', g.key, member) == 1)
if r and (field or member == MARK) then
  if strange(r.session) then return { 'taken' } end
  if r.session == id then return { 'joined', r.incarnation } end
end
if not there then
  redis.call('SADD', KEYS[2], ARGV[10])
  redis.call('HSET', g.key, MARK, '1')
  redis.call('DEL', g.m)
end
known(g, ARGV[8])
-- A record that is left of a dead one: another incarnation shows as left and joined.
if (field and member ~= MARK) or r then drop(g, member, 'X') end
local at = num(micros)
put(g, member, { session = id, incarnation = ARGV[7], joined = at, updated = at }, ARGV[5], 'J')
redis.call('HSET', KEYS[4], 'g' .. ARGV[10], ARGV[11], 'c', member)
redis.call('SET', KEYS[5], 'rs:' .. id, 'PX', ARGV[9])
return { 'ok' }
