-- Notes that the rows of some who wait in line are committed.
-- KEYS[1] gate; ARGV[1] the epoch under which they joined; ARGV[2] msgpack array of their reservation ids.
-- Leaves alone those who were promoted since: their next row is not known to be committed.
local gate = current_gate(KEYS[1])
if not gate or gate.epoch ~= tonumber(ARGV[1]) then
  return {0}
end
local ids, proved = cmsgpack.unpack(ARGV[2]), {}
for place, record in ipairs(redis.call('HMGET', gate.grants_key, unpack(ids))) do
  if record and string.sub(record, 1, 1) ~= 'P' then
    proved[#proved + 1] = ids[place]
  end
end
if #proved > 0 then
  call_in_parts('ZREM', gate.unproven_key, proved)
end
return {gate.epoch}
