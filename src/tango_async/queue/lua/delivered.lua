-- delivered: how a callback's delivery went; no arrow
-- ARGV: id, what happened (for the log), wait_ms before the next try (-1: it is done, -2: it is given up)
local id, now = ARGV[1], now_ms()
if redis.call('EXISTS', J(id)) == 0 then return 'GONE' end
local log = redis.call('HGET', J(id), 'cb_log') or ''
if #log > 8192 then log = '' end
redis.call('HSET', J(id), 'cb_log', log .. int(now) .. '|' .. ARGV[2] .. '\n')
if ARGV[3] == '-1' then
  if redis.call('ZREM', K('outbox'), id) == 1 then count('callbacks_delivered') end
  redis.call('HSET', J(id), 'cb_done_ms', int(now))
elseif ARGV[3] == '-2' then
  if redis.call('ZREM', K('outbox'), id) == 1 then
    count('callbacks_given_up')
    redis.call('ZADD', K('unsent'), int(now), id)
  end
else
  count('callbacks_failed')
  -- XX: another one may have delivered it while this try was under way.
  redis.call('ZADD', K('outbox'), 'XX', int(now + ARGV[3]), id)
end
return 'OK'
