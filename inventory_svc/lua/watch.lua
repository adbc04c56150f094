-- Reads the stock and what changed among those who hold units or wait since an earlier reading, both of one moment: a
-- reading of zero comes with everybody who was granted a unit, or joined the line, before it.
-- KEYS[1] gate; ARGV[1] epoch and ARGV[2] count of changes of the earlier reading.
-- Answers {epoch, available, reserved, sold, total, open, changes, waiting, known, entries}: known is 1 when the entries lead
-- from the earlier reading to this one, 0 when they cannot (another epoch, or too long ago). {0}: not current.
local gate = current_gate(KEYS[1])
if not gate then
  return {0}
end
local behind = gate.changes - tonumber(ARGV[2])
local known = gate.epoch == tonumber(ARGV[1]) and behind >= 0 and behind <= redis.call('LLEN', gate.changes_key)
local entries = {}
if known and behind > 0 then
  entries = redis.call('LRANGE', gate.changes_key, -behind, -1)
end
return {gate.epoch, gate.available, gate.reserved, gate.sold, gate.total, gate.open and 1 or 0, gate.changes,
  gate.waiting, known and 1 or 0, entries}
