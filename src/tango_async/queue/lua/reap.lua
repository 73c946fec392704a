-- reap: assigned -> queued when its lease is over; running -> queued when adopt_grace_ms more have passed
-- without anyone finding its machine; -> dead when its retries are spent or it is to be cancelled.
-- Nothing is reaped while the server's clock or the server itself is newly changed (greet.lua, below).
-- ARGV: adopt_grace_ms, most retries, quiet_ms, longest time between two looks, most jobs in one call,
--       verdict and short feedback of a job given up, then of one cancelled, then how far ahead a callback
--       is put at most, ms
-- Answers a list of: id, 'queued' or 'dead'.
local now = now_ms()
local f = redis.call('HMGET', K('server'), 'quiet_until', 'clock')
redis.call('HSET', K('server'), 'clock', int(now))
-- A callback that is further ahead than anybody puts one was put there before the clock was set back. It
-- moves by as much as the clock did; where nobody looked at the time, it is due when the longest wait is over.
local far = now + ARGV[10]
local back = math.max(0, (f[2] or now) - now)
local late = redis.call('ZRANGEBYSCORE', K('outbox'), '(' .. int(far), '+inf', 'WITHSCORES')
for i = 1, #late, 2 do
  redis.call('ZADD', K('outbox'), int(math.min(far, late[i + 1] - back)), late[i])
end
if f[2] and (now < tonumber(f[2]) or now > f[2] + ARGV[4]) then
  local quiet = int(now + ARGV[3])
  redis.call('HSET', K('server'), 'quiet_until', quiet)
  -- A lease given before the clock was set back would hold a dead dispatcher's job for as long as the jump.
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', K('held'), '(' .. quiet, '+inf')) do
    redis.call('ZADD', K('held'), quiet, id)
  end
  return {}
end
if f[1] and now < tonumber(f[1]) then
  -- A clock that was set back must not silence the upkeep for ever.
  if f[1] - now > ARGV[3] + 0 then redis.call('HSET', K('server'), 'quiet_until', int(now + ARGV[3])) end
  return {}
end
local done = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', K('held'), '-inf', int(now), 'LIMIT', 0, ARGV[5])) do
  local j = redis.call('HMGET', J(id), 'state', 'intent', 'retries')
  local over = now - redis.call('ZSCORE', K('held'), id)
  if not j[1] then
    redis.call('ZREM', K('held'), id)
  elseif j[1] == 'assigned' or over > ARGV[1] + 0 then
    count('leases_lost')
    if j[2] == 'cancel' then
      bury(id, now, '0', 'cancelled', ARGV[8], '', ARGV[9])
      done[#done + 1] = {tonumber(id), 'dead'}
    elseif tonumber(j[3]) >= tonumber(ARGV[2]) then
      bury(id, now, '0', 'gave_up', ARGV[6], '', ARGV[7])
      done[#done + 1] = {tonumber(id), 'dead'}
    else
      redis.call('HINCRBY', J(id), 'retries', 1)
      count('job_retries')
      requeue(id, now, 'Added job ' .. id .. ' to queue again: its dispatcher is gone')
      done[#done + 1] = {tonumber(id), 'queued'}
    end
  end
end
return done
