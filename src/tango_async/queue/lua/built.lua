-- built: one install's verdict on a build order; no arrow. The order stays, so that the same bytes sent again
-- are not loaded twice.
-- ARGV: image and archive, install, problem ('' if it was loaded)
local packed = redis.call('HGET', K('builds'), ARGV[1])
if not packed then return 0 end
local verdicts = cmsgpack.unpack(packed)
verdicts[ARGV[2]] = ARGV[3]
redis.call('HSET', K('builds'), ARGV[1], cmsgpack.pack(verdicts))
return 1
