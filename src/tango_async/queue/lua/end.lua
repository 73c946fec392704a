-- end: assigned/running -> dead
-- ARGV: id, seq, verdict, text for the trace, output reference, counter to raise (or ''), then more trace lines
-- Answers OK, DONE (this holder has ended it before), CANCEL (a cancel came first and the verdict is
-- another: end it again as cancelled), or STALE.
local id, now = ARGV[1], now_ms()
local mine, intent = holds(id, ARGV[2], 'intent')
if not mine then
  local f = redis.call('HMGET', J(id), 'state', 'ended_seq')
  return f[1] == 'dead' and f[2] == ARGV[2] and 'DONE' or 'STALE'
end
if intent == 'cancel' and ARGV[3] ~= 'cancelled' then return 'CANCEL' end
if ARGV[6] ~= '' then count(ARGV[6]) end
bury(id, now, ARGV[2], ARGV[3], ARGV[4], ARGV[5], '', {unpack(ARGV, 7)})
return 'OK'
