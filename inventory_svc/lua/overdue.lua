-- Finds grants whose row is not known to be committed although they are old.
-- KEYS[1] gate; ARGV[1] least age, milliseconds by this server's clock; ARGV[2] most to return.
-- Answers {epoch, id, record, id, record ...}, or {0} when the gate is not current. An id without a record is
-- dropped from the list of unproven ones: it holds nothing.
local gate = current_gate(KEYS[1])
if not gate then
  return {0}
end
local ids = redis.call('ZRANGEBYSCORE', gate.unproven_key, '-inf', now_ms() - tonumber(ARGV[1]), 'LIMIT', 0, ARGV[2])
local answer = {gate.epoch}
if #ids > 0 then
  for place, record in ipairs(redis.call('HMGET', gate.grants_key, unpack(ids))) do
    if record then
      answer[#answer + 1] = ids[place]
      answer[#answer + 1] = record
    else
      redis.call('ZREM', gate.unproven_key, ids[place])
    end
  end
end
return answer
