-- Follows transitions that are committed in SQL: RELEASED gives units back, or takes out of the line; SOLD moves units
-- from reserved to sold. Units that a release passed on inside SQL go to those who were promoted for them in this step.
-- KEYS[1] gate; ARGV[1] "L" (released) or "S" (sold); ARGV[2] the sale's epoch as SQL had it after the commit;
-- ARGV[3] msgpack array of reservation ids; ARGV[4] 1 to act on a gate of exactly that epoch only; ARGV[5] msgpack array
-- of ids that were promoted in the transaction of the release.
-- Answers {epoch, available, waiting}, or {0} when the move must be repeated: the gate is not current or is older than
-- that epoch (the calibration under way may have counted before the commit), or a move that comes before this one is
-- still to be made, so that a promoted one finds no unit, or one that was sold still waits.
-- Acts only on a record that is present and not there yet, so repetition in any order does no harm.
local gate = current_gate(KEYS[1])
local epoch = tonumber(ARGV[2])
if not gate or gate.epoch < epoch or (ARGV[4] == '1' and gate.epoch ~= epoch) then
  return {0}
end
local kind, ids, promoted = ARGV[1], cmsgpack.unpack(ARGV[3]), cmsgpack.unpack(ARGV[5])
local records, freed, entries, seen = {}, {}, {}, {}
for place, record in ipairs(redis.call('HMGET', gate.grants_key, unpack(ids))) do
  local id = ids[place]
  if record and not seen[id] then
    seen[id] = true
    local state, quantity, user = parsed(record)
    if kind == 'L' and state ~= 'L' then
      if state == 'W' then
        gate.waiting = gate.waiting - 1
      else
        if is_reserved(state) then
          gate.reserved = gate.reserved - quantity
        else
          gate.sold = gate.sold - quantity
        end
        gate.available = gate.available + quantity
      end
      freed[user] = (freed[user] or 0) + quantity
      entries[#entries + 1] = '-' .. id
    elseif kind == 'S' and is_reserved(state) then
      gate.reserved = gate.reserved - quantity
      gate.sold = gate.sold + quantity
    elseif kind == 'S' and state == 'W' then
      return {0}
    else
      record = nil
    end
    if record then
      records[#records + 1] = id
      records[#records + 1] = kind .. string.sub(record, 2)
    end
  end
end
local lost = false
if #promoted > 0 then
  for place, record in ipairs(redis.call('HMGET', gate.grants_key, unpack(promoted))) do
    local state, quantity = parsed(record or '')
    if not record then
      lost = true
    elseif state == 'W' then
      if quantity > gate.available then
        return {0}
      end
      gate.waiting = gate.waiting - 1
      gate.available = gate.available - quantity
      gate.reserved = gate.reserved + quantity
      records[#records + 1] = promoted[place]
      records[#records + 1] = 'R' .. string.sub(record, 2)
    end
  end
end
-- Whoever waits in SQL has a record here; without one the counts would say that there are units which there are not.
if lost or not is_sound(gate) then
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
call_in_parts('ZREM', gate.unproven_key, promoted)
return {gate.epoch, gate.available, gate.waiting}
