-- add: nothing -> queued
-- ARGV: spec, class, lab, output name, pin, fingerprint, same_ms, callback url, cb_min_ms, cb_wait_ms,
--       '1' if ids must be above a mark, then notes for the trace
-- Answers {id, new}: new is 0 if an identical addJob has given the id already; id is 0 if this server has
-- been emptied and does not know the mark (raise_ids).
local same = K('same:' .. ARGV[6])
local known = redis.call('GET', same)
if known then
  local mine = redis.call('HGET', J(known), 'pin')
  if mine then
    if mine == ARGV[5] then return {tonumber(known), 1} end
    redis.call('PEXPIRE', same, ARGV[7])
    -- Until this repeat has been answered, nobody may be told that the job ended.
    local now = now_ms()
    redis.call('HSET', J(known), 'answered_ms', '0', 'asked_ms', int(now))
    if redis.call('HGET', J(known), 'cb_tries') == '0' then
      redis.call('ZADD', K('outbox'), 'XX', int(now + ARGV[10]), known)
    end
    return {tonumber(known), 0}
  end
end
if ARGV[11] == '1' and redis.call('EXISTS', K('ids')) == 0 then return {0, 0} end
local now = now_ms()
local id = int(redis.call('INCR', K('ids')))
redis.call('HSET', J(id), 'spec', ARGV[1], 'class', ARGV[2], 'lab', ARGV[3], 'out', ARGV[4], 'pin', ARGV[5],
  'state', 'queued', 'order', id, 'added_ms', int(now), 'asked_ms', int(now), 'attempts', '0', 'retries', '0', 'seq', '0',
  'cb', ARGV[8], 'cb_min_ms', ARGV[9], 'cb_wait_ms', ARGV[10], 'cb_tries', '0', 'answered_ms', '0')
for i = 12, #ARGV do trace(id, now, ARGV[i]) end
trace(id, now, 'Added job ' .. id .. ' to queue')
redis.call('SET', same, id, 'PX', ARGV[7])
redis.call('HSET', K('pins'), ARGV[5], id)
redis.call('HSET', K('outputs:' .. ARGV[3]), ARGV[4], id)
redis.call('ZADD', K('queued'), id, id)
redis.call('ZADD', K('wait:' .. ARGV[2]), id, id)
count('job_requests')
ring(K('bell:' .. ARGV[2]))
return {tonumber(id), 1}
