-- The arrows that several scripts share: put behind _lanes.lua.

-- The credentials that came with a job; they go when it ends, and at the latest after this time.
local SECRET_S = 7 * 86400
local function secret_key(id) return K('secret:' .. id) end

-- held -> nobody's
local function let_go(id, now, ended)
  local f = redis.call('HMGET', J(id), 'machine', 'charged', 'claimed_ms')
  redis.call('ZREM', K('held'), id)
  if f[1] and f[1] ~= '' then redis.call('HDEL', K('machines'), f[1]) end
  redis.call('DEL', K('live:' .. id))
  vacate(id, now, ended, f[2], f[3])
end

-- assigned/running -> queued, at its old place
local function requeue(id, now, text)
  let_go(id, now, false)
  redis.call('HSET', J(id), 'state', 'queued', 'holder', '', 'machine', '', 'started_ms', '0',
    'trace', longer(redis.call('HGET', J(id), 'trace'), now, {text}))
  redis.call('EXPIRE', secret_key(id), SECRET_S)
  enqueue(id)
end

-- queued/assigned/running -> dead. Writes the outbox entry in the same step. `seq` is that of the holder
-- who ended it, or '0': only that holder may later hear DONE. `lines`, if any, come before the trace's last one.
local function bury(id, now, seq, verdict, text, output, note, lines)
  local f = redis.call('HMGET', J(id), 'state', 'pin', 'cb', 'answered_ms', 'cb_min_ms', 'cb_wait_ms', 'asked_ms',
    'trace')
  if f[1] == 'queued' then
    dequeue(id)
    forget_later(job_of(id).lane)
  else
    let_go(id, now, true)
  end
  redis.call('HDEL', K('pins'), f[2])
  redis.call('DEL', secret_key(id))
  lines = lines or {}
  lines[#lines + 1] = text
  redis.call('HSET', J(id), 'state', 'dead', 'ended_ms', int(now), 'ended_seq', seq,
    'verdict', verdict, 'output', output, 'note', note, 'trace', longer(f[8], now, lines, true))
  redis.call('ZADD', K('dead'), int(now), id)
  count('ended_' .. verdict)
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

-- A queued job is dead at once; a held one gets the intent that every later arrow looks at.
local function call_off(id, now, text, note)
  local f = redis.call('HMGET', J(id), 'state', 'holder')
  if f[1] == 'queued' then
    bury(id, now, '0', 'cancelled', text, '', note)
    return 'cancelled'
  end
  redis.call('HSET', J(id), 'intent', 'cancel')
  ring(K('control:' .. f[2]))
  redis.call('EXPIRE', K('control:' .. f[2]), 60)
  return 'requested'
end
