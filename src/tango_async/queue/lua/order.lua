-- order: what an operator wants of a dispatcher; no arrow. It stays until it is changed, over restarts.
-- ARGV: install, field of orders:<install>, value ('' removes the field)
-- Answers 1, or 0 for an install that has never published itself.
local packed = redis.call('HGET', K('dispatchers'), ARGV[1])
if not packed then return 0 end
local orders = K('orders:' .. ARGV[1])
if ARGV[2] == 'paused' and ARGV[3] == '' then redis.call('HINCRBY', orders, 'resumed', 1) end
if ARGV[3] == '' then
  redis.call('HDEL', orders, ARGV[2])
else
  redis.call('HSET', orders, ARGV[2], ARGV[3])
end
local control = K('control:' .. cmsgpack.unpack(packed)['instance'])
ring(control)
redis.call('EXPIRE', control, 60)
return 1
