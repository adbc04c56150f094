-- Takes available units for those who are first in line, in their order and each as many as it waits for.
-- KEYS[1] gate; ARGV[1] msgpack array of reservation ids in the order of the line; ARGV[2] 1 when whoever is satisfied
-- with less may overtake.
-- Answers {epoch, available, waiting, one letter per id}, or {0} when the gate is not current. Letters: T it has its
-- units, taken now or earlier; X it has left the line; O it waits on. The first that waits on ends it, unless it may be
-- overtaken. Who has its units counts as reserved at once; that they are durably so is up to SQL, as after a grant.
local gate = current_gate(KEYS[1])
if not gate then
  return {0}
end
local ids, overtaking = cmsgpack.unpack(ARGV[1]), ARGV[2] == '1'
local letters, records, times = {}, {}, {}
local now, stopped = now_ms(), not gate.open
for place, record in ipairs(redis.call('HMGET', gate.grants_key, unpack(ids))) do
  local state, quantity = parsed(record or '')
  local letter = 'O'
  if state == 'L' then
    letter = 'X'
  elseif state and state ~= 'W' then
    letter = 'T'
  elseif state == 'W' and not stopped and quantity <= gate.available then
    letter = 'T'
    gate.waiting = gate.waiting - 1
    gate.available = gate.available - quantity
    gate.reserved = gate.reserved + quantity
    records[#records + 1] = ids[place]
    records[#records + 1] = 'P' .. string.sub(record, 2)
    times[#times + 1] = now
    times[#times + 1] = ids[place]
  elseif not overtaking then
    stopped = true
  end
  letters[place] = letter
end
if not is_sound(gate) then
  redis.call('HSET', KEYS[1], 'serving', 0)
  return {0}
end
if #records > 0 then
  call_in_parts('HSET', gate.grants_key, records)
  call_in_parts('ZADD', gate.unproven_key, times)
  save_counts(KEYS[1], gate)
end
return {gate.epoch, gate.available, gate.waiting, table.concat(letters)}
