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

-- Writes one of our members. A member with the name of Python's mark has no field in Python's hash; its record holds its
-- capabilities.
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

-- Takes a member out; `kind`: Q, its own process said so; X, anything else. An earlier version says L for both.
local function drop(g, member, kind)
  if member ~= MARK then redis.call('HDEL', g.key, member) end
  redis.call('HDEL', g.m, 'm' .. member)
  changed(g, kind .. ' ' .. member)
end

local function beats(member)
  return NS .. '_beats:' .. member
end

-- Our session that a beat belongs to; nil: the beat is Python's.
local function owner(beat)
  return beat and string.match(beat, '^rs:(%x+)$')
end

-- Whether there is a living member of Python's with this id.
local function theirs(member)
  local beat = redis.call('GET', beats(member))
  return beat and not owner(beat)
end

-- The living members, each with its capabilities, and our members with their records. Writes nothing: `dropped` lists members
-- that are dead or that Python removed, `replaced` those whose place a Python member took.
local function living(g)
  local caps, records, found, dropped, replaced = {}, {}, {}, {}, {}
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
      dropped[#dropped + 1] = member
    end
  end
  for member, text in pairs(caps) do
    local r = records[member] or nil
    local ours = r and alive(r.session)
    if not ours and not theirs(member) then
      dropped[#dropped + 1] = member
    else
      -- Python's member took the place of one of ours that died.
      if r and not ours then
        replaced[#replaced + 1] = member
        r = nil
      end
      found[#found + 1] = { member, text, r }
    end
  end
  return found, dropped, replaced
end

-- The living members. The others are taken out, as Python does.
local function members(g)
  local found, dropped, replaced = living(g)
  for _, member in ipairs(dropped) do drop(g, member, 'X') end
  for _, member in ipairs(replaced) do
    redis.call('HDEL', g.m, 'm' .. member)
    changed(g, 'P')
  end
  return found
end

-- A digest of these members as Python sees them.
local function digest(found)
  local sum = 0
  for _, one in ipairs(found) do
    sum = (sum + tonumber(string.sub(redis.sha1hex(pair(one[1], one[2])), 1, 12), 16)) % 281474976710656
  end
  return num(sum)
end

-- These members as they are answered; `only`: one of them, or ''.
local function shown(found, only)
  local list = {}
  for _, one in ipairs(found) do
    local member, caps, r = one[1], one[2], one[3]
    if only == '' or only == member then
      list[#list + 1] = { member, caps, r and r.incarnation or '', r and r.joined or '', r and r.updated or '' }
    end
  end
  return list
end
