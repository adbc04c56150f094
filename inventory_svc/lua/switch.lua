-- Puts a calibration that was loaded under its own names into service, in one step.
-- KEYS[1] gate; ARGV[1] run id with which the loading began; ARGV[2] epoch; ARGV[3] and ARGV[4] how many fields
-- grants and users must have; ARGV[5..] available, reserved, sold, total, open, per_user_limit, per_purchase_limit,
-- waiting.
-- Answers 1, or 0 (and changes nothing) when the server was restarted meanwhile, a calibration of this or a newer epoch
-- is in service, or something loaded is missing.
local run_id = server_run_id()
local base, epoch = base_of(KEYS[1]), ARGV[2]
local found = redis.call('HMGET', KEYS[1], 'run_id', 'epoch')
local present = tonumber(found[2] or 0)
if run_id ~= ARGV[1] or (found[1] == run_id and present >= tonumber(epoch)) then
  return 0
end
if redis.call('HLEN', base .. 'grants:' .. epoch) ~= tonumber(ARGV[3])
  or redis.call('HLEN', base .. 'users:' .. epoch) ~= tonumber(ARGV[4]) then
  return 0
end
redis.call('PERSIST', base .. 'grants:' .. epoch)
redis.call('PERSIST', base .. 'users:' .. epoch)
redis.call('UNLINK', KEYS[1], base .. 'unproven:' .. epoch, base .. 'changes:' .. epoch)
redis.call('HSET', KEYS[1], 'run_id', run_id, 'epoch', epoch, 'serving', 1, 'available', ARGV[5], 'reserved', ARGV[6],
  'sold', ARGV[7], 'total', ARGV[8], 'open', ARGV[9], 'per_user_limit', ARGV[10], 'per_purchase_limit', ARGV[11],
  'waiting', ARGV[12], 'changes', 0)
tell_followers(KEYS[1])
if present > 0 and present ~= tonumber(epoch) then
  for _, name in ipairs({'grants:', 'users:', 'unproven:', 'changes:'}) do
    redis.call('UNLINK', base .. name .. found[2])
  end
end
return 1
