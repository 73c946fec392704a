-- retry: assigned/running -> queued, after a fault of the infrastructure
-- ARGV: id, seq, reason, most retries (or -1: not charged), counter to raise (or '')
-- Answers OK, SPENT (still held: the holder must end it), CANCEL (likewise), or STALE.
local id, now, most = ARGV[1], now_ms(), tonumber(ARGV[4])
local mine, intent, retries = holds(id, ARGV[2], 'intent', 'retries')
if not mine then return 'STALE' end
if intent == 'cancel' then return 'CANCEL' end
if ARGV[5] ~= '' then count(ARGV[5]) end
if most >= 0 then
  if tonumber(retries) >= most then return 'SPENT' end
  redis.call('HINCRBY', J(id), 'retries', 1)
  count('job_retries')
end
requeue(id, now, 'Added job ' .. id .. ' to queue again: ' .. ARGV[3])
return 'OK'
