-- Opens a session, after ending the coordinator's earlier one. The stamp is made with the first session: a session that finds
-- another epoch knows that the data was lost. No session is opened beside those of another layout.
-- KEYS: session, epoch, beat, lives. ARGV: NS, sender, session, ttl, fresh, previous or '', keep, member, layout
local stamp = redis.call('GET', KEYS[2])
local begin = ARGV[9] == '1' and '' or ARGV[9] .. ' '
local lives, who = string.match(redis.call('GET', KEYS[4]) or '', '^(%d+) (.*)$')
if stamp then
  local layout, epoch = string.match(stamp, '^([1-9]%d*) (%x+)$')
  if not layout then layout, epoch = '1', string.match(stamp, '^%x+$') end
  local other = layout ~= ARGV[9]
  if not epoch or #epoch ~= 32 or other and (who or tonumber(layout) > tonumber(ARGV[9])) then
    return { 'refused', stamp, who or '' }
  end
  if other then redis.call('SET', KEYS[2], begin .. epoch) end
elseif lives and lives ~= ARGV[9] then
  return { 'refused', lives == '1' and ARGV[5] or lives .. ' ' .. ARGV[5], who }
end
if ARGV[6] ~= '' then
  end_session(ARGV[6], 'E', ARGV[7])
  if redis.call('GET', KEYS[3]) == 'rs:' .. ARGV[6] then redis.call('DEL', KEYS[3]) end
end
if not stamp then
  redis.call('SET', KEYS[2], begin .. ARGV[5])
  publish(OWN .. 'epoch', begin .. ARGV[5])
end
redis.call('HSET', KEYS[1], 'e', sender, 'b', 0, 'm', ARGV[8])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
say_alive(KEYS[4], ARGV[9], ARGV[8], ARGV[4])
return { 'ok', redis.call('GET', KEYS[2]), num(now) }
