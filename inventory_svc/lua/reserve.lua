-- Takes units for the wishes of one sale, each decided by itself and in order.
-- KEYS[1] gate; ARGV[1] msgpack array of {reservation id, user id, request id, quantity, whether to wait if need be};
-- ARGV[2] how many may wait in line at most.
-- Answers {epoch, available, waiting, one letter per wish}, or {0} when the gate is not current. Letters: G granted now,
-- A granted earlier (reserved or sold by now), W waits in line, now or earlier (or has just been promoted from it: SQL
-- tells), C the id has other contents, L the id was released, N not open, P above the limit of a purchase, U above the
-- limit of the user, O too few units left or somebody waits for them, F the line is full.
-- The decrement and the record of who got it are one step; nothing is written unless something is granted or joins.
local gate = current_gate(KEYS[1])
if not gate then
  return {0}
end
local wishes, waiting_max = cmsgpack.unpack(ARGV[1]), tonumber(ARGV[2])
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
      local state = string.sub(record, 1, 1)
      letter = state == 'L' and 'L' or (state == 'W' or state == 'P') and 'W' or 'A'
    end
  elseif not gate.open then
    letter = 'N'
  elseif quantity > gate.per_purchase_limit then
    letter = 'P'
  elseif held[user] + quantity > gate.per_user_limit then
    letter = 'U'
  else
    local served = gate.waiting == 0 and quantity <= gate.available
    if served then
      letter = 'G'
      gate.available = gate.available - quantity
      gate.reserved = gate.reserved + quantity
    elseif not wish[5] or quantity > gate.total then
      -- More than there are in all would wait for ever, and everybody behind it.
      letter = 'O'
    elseif gate.waiting >= waiting_max then
      letter = 'F'
    else
      letter = 'W'
      gate.waiting = gate.waiting + 1
    end
    if letter == 'G' or letter == 'W' then
      held[user] = held[user] + quantity
      users_changed[user] = true
      records[id] = (served and 'R' or 'W') .. contents
      grants[#grants + 1] = id
      grants[#grants + 1] = records[id]
      grant_times[#grant_times + 1] = now
      grant_times[#grant_times + 1] = id
      entries[#entries + 1] = '+' .. id .. request
    end
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
return {gate.epoch, gate.available, gate.waiting, table.concat(letters)}
