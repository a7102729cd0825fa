-- One group. Python's hash has a field for each member, and `__created__`; `m` of ours has an id of this group (i), the number
-- of its last change (v), when it was last read as a whole (t), its digest then (d) and its number then (D), and a record for
-- each of our members under m<id>.
local MARK = '__created__'

local function group(key, base)
  return { key = key, m = base .. 'm', channel = base .. 'c' }
end

local function exists(g)
  return redis.call('EXISTS', g.key) == 1
end

-- A group that Python created has no number and no id yet.
local function known(g, fresh)
  if redis.call('HSETNX', g.m, 'i', fresh) == 1 then redis.call('HSET', g.m, 'v', 0) end
end

local function changed(g, message)
  publish(g.channel, num(redis.call('HINCRBY', g.m, 'v', 1)) .. ' ' .. message)
end

local function record(text)
  if not text then return nil end
  local id, incarnation, joined, updated, caps = string.match(text, '^(%x+) (%x+) (%d+) (%d+) ?(.*)$')
  if not id then return nil end
  return { session = id, incarnation = incarnation, joined = joined, updated = updated, caps = caps }
end

-- Writes a member of ours. One that is called like Python's mark has no field there: its capabilities stand here.
local function put(g, member, r, caps, kind)
  local text = table.concat({ r.session, r.incarnation, r.joined, r.updated }, ' ')
  if member == MARK then
    text = text .. ' ' .. caps
  else
    redis.call('HSET', g.key, member, caps)
  end
  redis.call('HSET', g.m, 'm' .. member, text)
  changed(g, table.concat({ kind, r.incarnation, r.joined, r.updated, pair(member, caps) }, ' '))
end

local function drop(g, member)
  if member ~= MARK then redis.call('HDEL', g.key, member) end
  redis.call('HDEL', g.m, 'm' .. member)
  changed(g, 'L ' .. member)
end

local function beats(member)
  return NS .. '_beats:' .. member
end

-- The session of ours that a beat belongs to; nil: it is Python's.
local function owner(beat)
  return beat and string.match(beat, '^rs:(%x+)$')
end

-- Whether there is a living member of Python's with this id.
local function theirs(member)
  local beat = redis.call('GET', beats(member))
  return beat and not owner(beat)
end

-- The living members, each with its capabilities and its record if it is ours. The others are taken out, as Python does.
local function members(g)
  local caps, records, found = {}, {}, {}
  local all = redis.call('HGETALL', g.m)
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 1) == 'm' then records[string.sub(all[i], 2)] = record(all[i + 1]) or false end
  end
  all = redis.call('HGETALL', g.key)
  for i = 1, #all, 2 do
    if all[i] ~= MARK then caps[all[i]] = all[i + 1] end
  end
  for member, r in pairs(records) do
    if member == MARK and r then
      caps[member] = r.caps
    elseif not caps[member] then
      -- Python took it out.
      drop(g, member)
    end
  end
  for member, text in pairs(caps) do
    local r = records[member] or nil
    local ours = r and alive(r.session)
    if not ours and not theirs(member) then
      drop(g, member)
    else
      -- Python's member took the place of one of ours that died.
      if r and not ours then
        redis.call('HDEL', g.m, 'm' .. member)
        changed(g, 'P')
        r = nil
      end
      found[#found + 1] = { member, text, r }
    end
  end
  return found
end
