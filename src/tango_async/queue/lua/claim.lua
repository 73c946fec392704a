-- claim: queued -> assigned, for jobs of the offered classes until `most` slots are filled: each time the lane with
-- the least virtual time, and of it the first job. The last one may want more slots than are left.
-- ARGV: instance, request id, lease_ms, most, then class, room (jobs of it that may be claimed), class, room …
-- Answers a list of {id, seq, attempt, added_ms, spec}. The same request again gets the same answer.
local mine, now = K('claim:' .. ARGV[1]), now_ms()

local function answer(id, seq, attempt)
  return {tonumber(id), tonumber(seq), tonumber(attempt), tonumber(job_of(id).added), job_of(id).spec}
end

local function again(given)
  local found = {}
  for id, seq in string.gmatch(given, '(%d+):(%d+)') do
    if holds(id, seq) then found[#found + 1] = answer(id, seq, redis.call('HGET', J(id), 'attempts')) end
  end
  return found
end

-- The first job of the first lane among the classes that still have room, and its class.
local function first(room)
  local id, chosen, least, first_order
  for class, left in pairs(room) do
    local head = left > 0 and redis.call('ZRANGE', K('lanes:' .. class), 0, 0, 'WITHSCORES') or {}
    if head[1] then
      local job, vt = redis.call('ZRANGE', place('wait', class, head[1]), 0, 0, 'WITHSCORES'), tonumber(head[2])
      local order = tonumber(job[2])
      if not least or vt < least or (vt == least and order < first_order) then
        id, chosen, least, first_order = job[1], class, vt, order
      end
    elseif left > 0 then
      redis.call('DEL', K('bell:' .. class))
    end
  end
  if id then redis.call('SET', K('vclock'), math.max(least, redis.call('GET', K('vclock')) or 0)) end
  return id, chosen
end

local function take(id)
  local seq = int(redis.call('INCR', K('seq')))
  local attempt = redis.call('HINCRBY', J(id), 'attempts', 1)
  redis.call('HSET', J(id), 'state', 'assigned', 'seq', seq, 'holder', ARGV[1], 'machine', '')
  redis.call('ZADD', K('held'), int(now + ARGV[3]), id)
  occupy(id, now)
  local foretold = redis.call('HGET', J(id), 'eta_ms')
  if foretold then
    learn(job_of(id).lane, now - foretold)
    redis.call('HDEL', J(id), 'eta_ms')
  end
  trace(id, now, {'Dispatched job ' .. id .. ' [try ' .. (attempt - 1) .. ']'})
  count('claims')
  return seq, attempt
end

local last = redis.call('HMGET', mine, 'request', 'given')
if last[1] == ARGV[2] then return again(last[2]) end
local room, taken, found, left = {}, {}, {}, tonumber(ARGV[4])
for i = 5, #ARGV, 2 do room[ARGV[i]] = tonumber(ARGV[i + 1]) end
while left > 0 do
  local id, class = first(room)
  if not id then break end
  local seq, attempt = take(id)
  taken[#taken + 1] = id .. ':' .. seq
  found[#found + 1] = answer(id, seq, attempt)
  room[class], left = room[class] - 1, left - job_of(id).slots
end
if #found > 0 then
  redis.call('HSET', mine, 'request', ARGV[2], 'given', table.concat(taken, ' '))
  redis.call('EXPIRE', mine, 3600)
end
return found
