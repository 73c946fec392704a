-- start: assigned -> running. Records the machine before the first byte is sent to it; again, with another
-- machine, when that one was dead.
-- ARGV: id, seq, machine, its VMMS
-- Answers OK, CANCEL (the holder must end it as cancelled), or STALE.
local id, now = ARGV[1], now_ms()
local mine, intent, before, trace = holds(id, ARGV[2], 'intent', 'machine', 'trace')
if not mine then return 'STALE' end
if intent == 'cancel' then return 'CANCEL' end
if before == ARGV[3] then return 'OK' end
if before and before ~= '' then redis.call('HDEL', K('machines'), before) end
redis.call('HSET', J(id), 'state', 'running', 'machine', ARGV[3], 'vmms', ARGV[4], 'started_ms', int(now),
  'trace', longer(trace, now, {'Assigned job ' .. id .. ' VM ' .. ARGV[3]}))
redis.call('HSET', K('machines'), ARGV[3], id)
return 'OK'
