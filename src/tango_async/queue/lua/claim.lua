-- claim: queued -> assigned, for the oldest waiting job of the offered classes
-- ARGV: instance, request id, lease_ms, classes
-- Answers {id, seq, attempt, added_ms, spec}, or nil. The same request again gets the same answer.
local mine = K('claim:' .. ARGV[1])
local last = redis.call('HMGET', mine, 'request', 'id', 'seq')
local id, seq
if last[1] == ARGV[2] then
  if not holds(last[2], last[3]) then return nil end
  id, seq = last[2], last[3]
else
  local best
  for i = 4, #ARGV do
    local head = redis.call('ZRANGE', K('wait:' .. ARGV[i]), 0, 0, 'WITHSCORES')
    if head[1] then
      if not best or tonumber(head[2]) < best then id, best = head[1], tonumber(head[2]) end
    else
      redis.call('DEL', K('bell:' .. ARGV[i]))
    end
  end
  if not id then return nil end
  local now = now_ms()
  seq = int(redis.call('INCR', K('seq')))
  redis.call('ZREM', K('queued'), id)
  redis.call('ZREM', K('wait:' .. redis.call('HGET', J(id), 'class')), id)
  local attempt = redis.call('HINCRBY', J(id), 'attempts', 1)
  redis.call('HSET', J(id), 'state', 'assigned', 'seq', seq, 'holder', ARGV[1], 'machine', '')
  redis.call('ZADD', K('held'), int(now + ARGV[3]), id)
  trace(id, now, 'Dispatched job ' .. id .. ' [try ' .. (attempt - 1) .. ']')
  redis.call('HSET', mine, 'request', ARGV[2], 'id', id, 'seq', seq)
  redis.call('EXPIRE', mine, 3600)
  count('claims')
end
local f = redis.call('HMGET', J(id), 'attempts', 'added_ms', 'spec')
return {tonumber(id), tonumber(seq), tonumber(f[1]), tonumber(f[2]), f[3]}
