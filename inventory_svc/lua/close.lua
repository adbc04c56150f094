-- Stops a gate before its successor is counted, so that no unit is granted that the fence would refuse anyway.
-- KEYS[1] gate. Answers the server's run id. A gate that stays closed is found and recalibrated.
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'serving', 0)
end
return server_run_id()
