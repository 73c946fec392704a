-- due: takes callbacks that are due; nobody else gets them for hold_ms
-- ARGV: most, hold_ms
-- Answers a list of {id, url, tries, attempt, verdict, output reference, note, ms since the end (or since
-- an operator had it sent again), output name}.
local now, found = now_ms(), {}
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
