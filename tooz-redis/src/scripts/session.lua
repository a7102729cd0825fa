-- Ends a session: its places first, or its own locks would be handed to itself; then all that it held in a lock, and only then the
-- lock is handed on, or two next holders would be told of one end. `how` is left in locks that it held; without it, its own process
-- closed it in order.
local function end_session(id, how, time)
  local all, locks, attempts = redis.call('HGETALL', session(id)), {}, {}
  for i = 1, #all, 2 do
    local kind, rest = string.sub(all[i], 1, 1), string.sub(all[i], 2)
    if kind == 'k' and #rest == 32 then
      local key, base = unpair(all[i + 1])
      if key then
        local l = locks[base] or lock(key, base)
        unqueue(l, rest)
        locks[base] = l
        attempts[#attempts + 1] = { rest, l }
      end
    elseif kind == 'g' then
      local g = group(NS .. '_group:' .. rest, all[i + 1])
      local member = redis.call('HGET', session(id), 'c')
      local r = member and exists(g) and record(redis.call('HGET', g.m, 'm' .. member))
      if r and r.session == id then drop(g, member, how and 'X' or 'Q') end
    end
  end
  for _, l in pairs(locks) do read(l) end
  for _, one in ipairs(attempts) do
    local attempt, l = one[1], one[2]
    local h = l.holders[attempt]
    if h and h.session == id then
      remove(l, attempt)
      if how then mark(l, how) end
    end
  end
  for _, l in pairs(locks) do
    if l.p then keep(l, time) end
    advance(l, time)
    finish(l)
  end
  redis.call('DEL', session(id))
end
