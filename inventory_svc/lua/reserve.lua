-- Takes units for the wishes of one sale, each decided by itself and in order.
-- KEYS[1] gate; ARGV[1] msgpack array of {reservation id, user id, request id, quantity}.
-- Answers {epoch, available, one letter per wish}, or {0} when the gate is not current. Letters: G granted now,
-- A granted earlier (reserved or sold by now), C the id has other contents, L the id was released, N not open,
-- P above the limit of a purchase, U above the limit of the user, O too few units left.
-- The decrement and the record of who got it are one step; nothing is written unless something is granted.
local gate = current_gate(KEYS[1])
if not gate then
  return {0}
end
local wishes = cmsgpack.unpack(ARGV[1])
local ids, users = {}, {}
for place, wish in ipairs(wishes) do
  ids[place], users[place] = wish[1], wish[2]
end
local records, held = {}, {}
for place, record in ipairs(redis.call('HMGET', gate.grants_key, unpack(ids))) do
  records[ids[place]] = record
end
for place, units in ipairs(redis.call('HMGET', gate.users_key, unpack(users))) do
  held[users[place]] = tonumber(units or 0)
end

local letters, grants, grant_times, entries, users_changed = {}, {}, {}, {}, {}
local now = now_ms()
for place, wish in ipairs(wishes) do
  local id, user, request, quantity = wish[1], wish[2], wish[3], wish[4]
  local record = records[id]
  local contents = quantity .. '\n' .. user .. '\n' .. request
  local letter
  if record then
    if string.sub(record, 2) ~= contents then
      letter = 'C'
    else
      letter = string.sub(record, 1, 1) == 'L' and 'L' or 'A'
    end
  elseif not gate.open then
    letter = 'N'
  elseif quantity > gate.per_purchase_limit then
    letter = 'P'
  elseif held[user] + quantity > gate.per_user_limit then
    letter = 'U'
  elseif quantity > gate.available then
    letter = 'O'
  else
    letter = 'G'
    gate.available = gate.available - quantity
    gate.reserved = gate.reserved + quantity
    held[user] = held[user] + quantity
    users_changed[user] = true
    records[id] = 'R' .. contents
    grants[#grants + 1] = id
    grants[#grants + 1] = records[id]
    grant_times[#grant_times + 1] = now
    grant_times[#grant_times + 1] = id
    entries[#entries + 1] = '+' .. id .. request
  end
  letters[place] = letter
end

if #grants > 0 then
  local user_units = {}
  for user in pairs(users_changed) do
    user_units[#user_units + 1] = user
    user_units[#user_units + 1] = held[user]
  end
  call_in_parts('HSET', gate.grants_key, grants)
  call_in_parts('HSET', gate.users_key, user_units)
  call_in_parts('ZADD', gate.unproven_key, grant_times)
  log_changes(gate, entries)
  save_counts(KEYS[1], gate)
end
return {gate.epoch, gate.available, table.concat(letters)}
