-- Shared by all scripts: put before each of them. KEYS[1] is the prefix of every key.
local P = KEYS[1]
local function K(name) return P .. name end
local function J(id) return P .. 'job:' .. id end

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function int(n) return string.format('%.0f', n) end

-- One line of the trace: "<ms>|<text>\n". Bounded, so that no loop can grow a record for ever; the
-- last line of a life (`whatever`) is always written.
local function trace(id, now, text, whatever)
  local old = redis.call('HGET', J(id), 'trace') or ''
  if whatever or #old < 16384 then
    redis.call('HSET', J(id), 'trace', old .. int(now) .. '|' .. text .. '\n')
  end
end

local function count(name) redis.call('HINCRBY', K('counters'), name, 1) end

local function ring(key)
  if redis.call('LLEN', key) < 64 then redis.call('RPUSH', key, '1') end
end

-- Is the job held, and by this seq?
local function holds(id, seq)
  local f = redis.call('HMGET', J(id), 'state', 'seq')
  return (f[1] == 'assigned' or f[1] == 'running') and f[2] == seq
end

-- held -> nobody's
local function let_go(id)
  redis.call('ZREM', K('held'), id)
  local machine = redis.call('HGET', J(id), 'machine')
  if machine and machine ~= '' then redis.call('HDEL', K('machines'), machine) end
  redis.call('DEL', K('live:' .. id))
end

-- assigned/running -> queued, at its old place
local function requeue(id, now, text)
  let_go(id)
  local f = redis.call('HMGET', J(id), 'class', 'order')
  redis.call('HSET', J(id), 'state', 'queued', 'holder', '', 'machine', '', 'started_ms', '0')
  redis.call('ZADD', K('queued'), f[2], id)
  redis.call('ZADD', K('wait:' .. f[1]), f[2], id)
  trace(id, now, text)
  ring(K('bell:' .. f[1]))
end

-- queued/assigned/running -> dead. Writes the outbox entry in the same step. `seq` is that of the holder
-- who ended it, or '0': only that holder may later hear DONE.
local function bury(id, now, seq, verdict, text, output, note)
  local f = redis.call('HMGET', J(id), 'class', 'pin', 'cb', 'answered_ms', 'cb_min_ms', 'cb_wait_ms', 'asked_ms')
  let_go(id)
  redis.call('ZREM', K('queued'), id)
  redis.call('ZREM', K('wait:' .. f[1]), id)
  redis.call('HDEL', K('pins'), f[2])
  redis.call('HSET', J(id), 'state', 'dead', 'ended_ms', int(now), 'ended_seq', seq,
    'verdict', verdict, 'output', output, 'note', note)
  redis.call('ZADD', K('dead'), int(now), id)
  count('ended_' .. verdict)
  trace(id, now, text, true)
  if f[3] and f[3] ~= '' then
    local due = now
    if f[4] and f[4] ~= '0' then
      due = math.max(now, f[4] + f[5])
    else
      due = math.max(now, f[7] + f[6])
    end
    redis.call('ZADD', K('outbox'), int(due), id)
  end
end
