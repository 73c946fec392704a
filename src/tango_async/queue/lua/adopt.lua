-- adopt: assigned/running keep their state, the holder changes; the new seq shuts the old one out
-- ARGV: machine, instance, lease_ms
-- Answers {id, seq, attempt, added_ms, spec, ms since it was started}, or nil if no live job runs on the machine.
local id = redis.call('HGET', K('machines'), ARGV[1])
if not id then return nil end
local f = redis.call('HMGET', J(id), 'state', 'machine', 'attempts', 'added_ms', 'spec', 'started_ms')
if f[1] ~= 'running' or f[2] ~= ARGV[1] then return nil end
local now = now_ms()
count('adoptions')
local seq = int(redis.call('INCR', K('seq')))
redis.call('HSET', J(id), 'seq', seq, 'holder', ARGV[2])
redis.call('ZADD', K('held'), int(now + ARGV[3]), id)
return {tonumber(id), tonumber(seq), tonumber(f[3]), tonumber(f[4]), f[5], now - tonumber(f[6])}
