-- Ends a session: its places first, or its own locks would be handed to itself. `how` is left in locks that it held.
local function end_session(id, how, time)
  local all, locks = redis.call('HGETALL', session(id)), {}
  for i = 1, #all, 2 do
    local kind, rest = string.sub(all[i], 1, 1), string.sub(all[i], 2)
    if kind == 'k' and #rest == 32 then
      local key, base = unpair(all[i + 1])
      if key then
        local l = lock(key, base)
        unqueue(l, rest)
        locks[#locks + 1] = { rest, l }
      end
    elseif kind == 'g' then
      local g = group(NS .. '_group:' .. rest, all[i + 1])
      local member = redis.call('HGET', session(id), 'c')
      local r = member and exists(g) and record(redis.call('HGET', g.m, 'm' .. member))
      if r and r.session == id then drop(g, member) end
    end
  end
  for _, one in ipairs(locks) do
    local l = read(one[2])
    local h = l.holders[one[1]]
    if h and h.session == id then
      remove(l, one[1])
      if how then mark(l, how) end
    end
    if l.p then keep(l, time) end
    advance(l, time)
    finish(l)
  end
  redis.call('DEL', session(id))
end
