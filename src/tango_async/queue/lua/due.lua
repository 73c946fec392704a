-- due: takes callbacks that are due; nobody else gets them for hold_ms
-- While a deliverer lives it looks every second or so. After a longer pause the clock may have been set forward,
-- and what seems due may be too young: nothing is due until min_age_ms have passed for whatever was answered
-- before this look.
-- ARGV: most, hold_ms, min_age_ms, longest pause between two looks, ms
-- Answers a list of {id, url, tries, attempt, verdict, output reference, note, ms since the end (or since
-- an operator had it sent again), output name}.
local now, found = now_ms(), {}
local seen = redis.call('HMGET', K('server'), 'looked', 'callbacks_from')
redis.call('HSET', K('server'), 'looked', int(now))
if seen[1] and now > seen[1] + ARGV[4] then
  seen[2] = int(now + ARGV[3])
  redis.call('HSET', K('server'), 'callbacks_from', seen[2])
end
-- A clock that was set back meanwhile must not silence them for long.
if seen[2] and now < tonumber(seen[2]) and seen[2] - now <= tonumber(ARGV[3]) then return {} end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', K('outbox'), '-inf', int(now), 'LIMIT', 0, ARGV[1])) do
  local f = redis.call('HMGET', J(id), 'cb', 'cb_tries', 'attempts', 'verdict', 'output', 'note', 'ended_ms', 'out',
    'resent_ms')
  if f[1] then
    redis.call('ZADD', K('outbox'), int(now + ARGV[2]), id)
    redis.call('HINCRBY', J(id), 'cb_tries', 1)
    found[#found + 1] = {tonumber(id), f[1], tonumber(f[2]), tonumber(f[3]), f[4], f[5], f[6], now - (f[9] or f[7]), f[8]}
  else
    redis.call('ZREM', K('outbox'), id)
  end
end
return found
