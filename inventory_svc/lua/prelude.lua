-- Shared by every script of the gate; put before each. All keys of a sale share the hash tag {sale_id}, so the names
-- derived here from the gate's key stay on its node of a cluster.
--
-- The gate is a hash: run_id and epoch of its calibration, serving (1 or 0), available, reserved, sold, total, open (1
-- or 0), per_user_limit, per_purchase_limit, changes (how many entries the log of fingerprint changes ever had), waiting
-- (how many records of state W there are; while there are any, available units are theirs), change_ms (when the counts
-- last changed, by this server's clock; absent before the first time).
-- grants:<epoch> maps a reservation id to its record: state (R reserved, S sold, L released, W waits in line, P promoted:
-- taken out of the line with its units and reserved like R, but SQL, which keeps the line, may not know it yet),
-- quantity, user id and request id, the last two after a newline each (they are printable, so they contain none).
-- users:<epoch> maps a user id to the units it has reserved or bought or waits for. Both have the empty field as a
-- sentinel, so that an empty hash is told from a lost one. unproven:<epoch> holds reservation ids by the time of their
-- grant, or of joining the line, until their row is known to be committed. changes:<epoch> is the end of the log of who
-- came to hold units or to wait (+) or ceased to (-).

local CHANGES_KEPT = 20000
-- Counts that have not changed for so long are quiet, milliseconds: their next change is told at once. Less than the
-- time for which whoever follows a sale goes on reading quickly after a change (_IDLE_AFTER_S in stock_watch.py).
local QUIET_MS = 1000

-- The id of this run of the server. A restart can bring back keys that are a second old; only this tells.
local function server_run_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

local function base_of(gate_key)
  return string.sub(gate_key, 1, -5)
end

-- The sale's gate, or nil when its calibration is missing, of another run of the server, or being replaced.
local function current_gate(gate_key)
  local found = redis.call('HMGET', gate_key, 'run_id', 'epoch', 'serving', 'available', 'reserved', 'sold', 'total',
    'open', 'per_user_limit', 'per_purchase_limit', 'changes', 'waiting', 'change_ms')
  if found[3] ~= '1' or found[1] ~= server_run_id() then
    return nil
  end
  local base = base_of(gate_key)
  local waiting = tonumber(found[12] or 0)
  local gate = {
    epoch = tonumber(found[2]),
    available = tonumber(found[4]),
    available_before = tonumber(found[4]),
    reserved = tonumber(found[5]),
    sold = tonumber(found[6]),
    total = tonumber(found[7]),
    open = found[8] == '1',
    per_user_limit = tonumber(found[9]),
    per_purchase_limit = tonumber(found[10]),
    changes = tonumber(found[11]),
    change_ms = tonumber(found[13] or 0),
    waiting = waiting,
    waiting_before = waiting,
    grants_key = base .. 'grants:' .. found[2],
    users_key = base .. 'users:' .. found[2],
    unproven_key = base .. 'unproven:' .. found[2],
    changes_key = base .. 'changes:' .. found[2],
  }
  if redis.call('HEXISTS', gate.grants_key, '') == 0 or redis.call('HEXISTS', gate.users_key, '') == 0 then
    return nil
  end
  return gate
end

local function now_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end

-- State, quantity and user id of a record.
local function parsed(record)
  local state, quantity, user_id = string.match(record, '^(.)(%d+)\n([^\n]*)\n')
  return state, tonumber(quantity), user_id
end

-- Whether a record of this state holds units that are not sold.
local function is_reserved(state)
  return state == 'R' or state == 'P'
end

-- Calls a command with a long list of arguments, a part at a time: Lua's stack holds fewer than 8,000.
local function call_in_parts(command, key, arguments)
  for first = 1, #arguments, 2000 do
    redis.call(command, key, unpack(arguments, first, math.min(first + 1999, #arguments)))
  end
end

local function log_changes(gate, entries)
  if #entries == 0 then
    return
  end
  call_in_parts('RPUSH', gate.changes_key, entries)
  redis.call('LTRIM', gate.changes_key, -CHANGES_KEPT, -1)
  gate.changes = gate.changes + #entries
end

-- Tells every process that follows the sale to read it now.
local function tell_followers(gate_key)
  redis.call('PUBLISH', 'inventory:edges', string.match(gate_key, '{(.-)}'))
end

-- Writes the counts back. They were checked before anything was written. When the last unit goes, or the first returns,
-- or the first begins to wait, or nobody waits any more, every process that follows the sale is told: a gateway that
-- still acts on the reading before could tell a winner that it lost. So is the first change after a quiet time, in which
-- followers read seldom; under load nothing more is told.
local function save_counts(gate_key, gate)
  local now = now_ms()
  if (gate.available == 0) ~= (gate.available_before == 0) or (gate.waiting == 0) ~= (gate.waiting_before == 0)
    or now - gate.change_ms >= QUIET_MS then
    tell_followers(gate_key)
  end
  redis.call('HSET', gate_key, 'available', gate.available, 'reserved', gate.reserved, 'sold', gate.sold, 'changes',
    gate.changes, 'waiting', gate.waiting, 'change_ms', now)
end

-- Whether the counts can be true. If not, somebody has tampered with the keys.
local function is_sound(gate)
  return gate.available >= 0 and gate.reserved >= 0 and gate.sold >= 0 and gate.waiting >= 0
    and gate.available + gate.reserved + gate.sold == gate.total
end
