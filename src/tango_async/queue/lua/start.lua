-- start: assigned -> running. Records the machine before the first byte is sent to it; again, with another
-- machine, when that one was dead.
-- ARGV: id, seq, machine, its VMMS
-- Answers OK, CANCEL (the holder must end it as cancelled), or STALE.
local id, now = ARGV[1], now_ms()
if not holds(id, ARGV[2]) then return 'STALE' end
if redis.call('HGET', J(id), 'intent') == 'cancel' then return 'CANCEL' end
local before = redis.call('HGET', J(id), 'machine')
if before == ARGV[3] then return 'OK' end
if before and before ~= '' then redis.call('HDEL', K('machines'), before) end
redis.call('HSET', J(id), 'state', 'running', 'machine', ARGV[3], 'vmms', ARGV[4], 'started_ms', int(now))
redis.call('HSET', K('machines'), ARGV[3], id)
trace(id, now, {'Assigned job ' .. id .. ' VM ' .. ARGV[3]})
return 'OK'
