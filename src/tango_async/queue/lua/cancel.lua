-- cancel: queued -> dead at once; assigned/running: sets the intent that every later arrow looks at
-- ARGV: id, text for the trace, the short feedback
-- Answers cancelled, requested, completed, not_found.
local id, now = ARGV[1], now_ms()
local f = redis.call('HMGET', J(id), 'state', 'holder')
if not f[1] then return 'not_found' end
if f[1] == 'dead' then return 'completed' end
if f[1] == 'queued' then
  bury(id, now, '0', 'cancelled', ARGV[2], '', ARGV[3])
  return 'cancelled'
end
redis.call('HSET', J(id), 'intent', 'cancel')
ring(K('control:' .. f[2]))
redis.call('EXPIRE', K('control:' .. f[2]), 60)
return 'requested'
