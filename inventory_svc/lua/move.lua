-- Follows transitions that are committed in SQL: RELEASED gives units back, SOLD moves them from reserved to sold.
-- KEYS[1] gate; ARGV[1] "L" (released) or "S" (sold); ARGV[2] the sale's epoch as SQL had it after the commit;
-- ARGV[3] msgpack array of reservation ids; ARGV[4] 1 to act on a gate of exactly that epoch only.
-- Answers {epoch, available}, or {0} when the gate is not current or is older than that epoch: the move must then be
-- repeated, because the calibration under way may have counted before the commit.
-- Acts only on a record that is present and not there yet, so repetition in any order does no harm.
local gate = current_gate(KEYS[1])
local epoch = tonumber(ARGV[2])
if not gate or gate.epoch < epoch or (ARGV[4] == '1' and gate.epoch ~= epoch) then
  return {0}
end
local kind, ids = ARGV[1], cmsgpack.unpack(ARGV[3])
local records, freed, entries, seen = {}, {}, {}, {}
for place, record in ipairs(redis.call('HMGET', gate.grants_key, unpack(ids))) do
  local id = ids[place]
  if record and not seen[id] then
    seen[id] = true
    local state, quantity, user = parsed(record)
    if kind == 'L' and state ~= 'L' then
      if state == 'R' then
        gate.reserved = gate.reserved - quantity
      else
        gate.sold = gate.sold - quantity
      end
      gate.available = gate.available + quantity
      freed[user] = (freed[user] or 0) + quantity
      entries[#entries + 1] = '-' .. id
    elseif kind == 'S' and state == 'R' then
      gate.reserved = gate.reserved - quantity
      gate.sold = gate.sold + quantity
    else
      record = nil
    end
    if record then
      records[#records + 1] = id
      records[#records + 1] = kind .. string.sub(record, 2)
    end
  end
end
if not is_sound(gate) then
  redis.call('HSET', KEYS[1], 'serving', 0)
  return {0}
end
if #records > 0 then
  call_in_parts('HSET', gate.grants_key, records)
  for user, units in pairs(freed) do
    if redis.call('HINCRBY', gate.users_key, user, -units) <= 0 then
      redis.call('HDEL', gate.users_key, user)
    end
  end
  log_changes(gate, entries)
  save_counts(KEYS[1], gate)
end
call_in_parts('ZREM', gate.unproven_key, ids)
return {gate.epoch, gate.available}
