-- Reads the stock at one moment. KEYS[1] gate.
-- Answers {epoch, available, reserved, sold, total, open, changes, waiting}, or {0} when the gate is not current.
local gate = current_gate(KEYS[1])
if not gate then
  return {0}
end
return {gate.epoch, gate.available, gate.reserved, gate.sold, gate.total, gate.open and 1 or 0, gate.changes,
  gate.waiting}
