-- show: adds to the visible output of a running job; no arrow
-- ARGV: id, seq, offset, bytes, expiry_s
-- Answers the length now, or -1 if the caller does not hold the job.
if not holds(ARGV[1], ARGV[2]) then return -1 end
local key = K('live:' .. ARGV[1])
local length = redis.call('STRLEN', key)
if length == tonumber(ARGV[3]) then
  length = redis.call('APPEND', key, ARGV[4])
  redis.call('EXPIRE', key, ARGV[5])
end
return length
