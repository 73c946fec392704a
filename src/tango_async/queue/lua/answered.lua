-- answered: the answers that gave these ids have been flushed to their clients; no arrow.
-- A callback that has not been tried yet is due cb_min_ms later, and no sooner.
-- ARGV: ids
local now = now_ms()
for _, id in ipairs(ARGV) do
  local f = redis.call('HMGET', J(id), 'cb', 'cb_min_ms', 'cb_tries')
  if f[1] and f[1] ~= '' then
    redis.call('HSET', J(id), 'answered_ms', int(now))
    if f[3] == '0' then redis.call('ZADD', K('outbox'), 'XX', int(now + f[2]), id) end
  end
end
return 'OK'
