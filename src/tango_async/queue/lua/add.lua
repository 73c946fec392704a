-- add: nothing -> queued
-- ARGV: spec, class, lab, output name, pin, fingerprint, same_ms, callback url, cb_min_ms, cb_wait_ms,
--       '1' if ids must be above a mark, lane, its weight, its cap, its cap for each submitter, submitter (or ''),
--       priority, what it supersedes ('keep', 'output', 'submitter'), text and short feedback for those,
--       slots, the longest time that it can take in ms, its credentials (or ''), then notes for the trace
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

local now, class, lane, who = now_ms(), ARGV[2], ARGV[12], ARGV[16]
local id = int(redis.call('INCR', K('ids')))

local function older()
  if ARGV[18] == 'output' then return {redis.call('HGET', K('outputs:' .. ARGV[3]), ARGV[4]) or nil} end
  if ARGV[18] ~= 'submitter' or who == '' then return {} end
  local found = redis.call('SMEMBERS', of('running', lane, who))
  for _, kind in ipairs(redis.call('HKEYS', K('classes:' .. lane))) do
    for _, other in ipairs(redis.call('ZRANGE', mine_key(kind, lane, who), 0, 999)) do found[#found + 1] = other end
  end
  return found
end

for _, other in ipairs(older()) do
  local f = redis.call('HMGET', J(other), 'state', 'lab', 'intent', 'who')
  -- Never another submitter's, also where they have one output file.
  if f[1] and f[1] ~= 'dead' and f[2] == ARGV[3] and not f[3] and f[4] == who then
    redis.call('HSET', J(other), 'trace',
      longer(redis.call('HGET', J(other), 'trace'), now, {'Superseded by job ' .. id}))
    call_off(other, now, ARGV[19], ARGV[20])
  end
end

local caps = redis.call('HMGET', lane_key(lane), 'cap', 'each')
redis.call('HSET', lane_key(lane), 'weight', ARGV[13], 'cap', ARGV[14], 'each', ARGV[15])
known_lanes[lane] = nil
if caps[1] ~= ARGV[14] or caps[2] ~= ARGV[15] then recap(lane) end
local pending = 0
if who ~= '' then
  pending = redis.call('ZCARD', mine_key(class, lane, who)) + redis.call('SCARD', of('running', lane, who))
end
local notes = {unpack(ARGV, 24)}
notes[#notes + 1] = 'Added job ' .. id .. ' to queue'
local order = int((100 - ARGV[17]) * PRIORITY + id + PENALTY * pending)
redis.call('HSET', J(id), 'spec', ARGV[1], 'class', class, 'lab', ARGV[3], 'out', ARGV[4], 'pin', ARGV[5],
  'lane', lane, 'who', who, 'order', order, 'slots', ARGV[21], 'longest_ms', ARGV[22],
  'state', 'queued', 'added_ms', int(now), 'asked_ms', int(now), 'attempts', '0', 'retries', '0', 'seq', '0',
  'cb', ARGV[8], 'cb_min_ms', ARGV[9], 'cb_wait_ms', ARGV[10], 'cb_tries', '0', 'answered_ms', '0',
  'trace', longer('', now, notes))
if ARGV[23] ~= '' then redis.call('SET', secret_key(id), ARGV[23], 'EX', SECRET_S) end
redis.call('SET', same, id, 'PX', ARGV[7])
redis.call('HSET', K('pins'), ARGV[5], id)
redis.call('HSET', K('outputs:' .. ARGV[3]), ARGV[4], id)
count('job_requests')
enqueue(id)
return {tonumber(id), 1}
