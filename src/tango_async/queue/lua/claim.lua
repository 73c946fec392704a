-- claim: queued -> assigned, for jobs of the offered classes until `most` slots are filled: each time the lane with
-- the least virtual time, and of it the first job. The last one may want more slots than are left.
-- ARGV: instance, request id, lease_ms, most, then class, room (jobs of it that may be claimed), class, room …
-- A class with labels stands for all that require no others: they share its room.
-- Answers a list of {id, seq, attempt, added_ms, spec}. The same request again gets the same answer.
local OFFER_MS = 86400000
local mine, now = K('claim:' .. ARGV[1]), now_ms()

local function answer(id, seq, attempt, added_ms, spec)
  return {tonumber(id), tonumber(seq), tonumber(attempt), tonumber(added_ms), spec}
end

local function again(given)
  local found = {}
  for id, seq in string.gmatch(given, '(%d+):(%d+)') do
    local mine, attempt, added_ms, spec = holds(id, seq, 'attempts', 'added_ms', 'spec')
    if mine then found[#found + 1] = answer(id, seq, attempt, added_ms, spec) end
  end
  return found
end

-- The classes that an offer stands for. It is remembered for a while, so that whoever adds such a job rings its bell.
local function classes_of(offer)
  local plain, labels = split_class(offer)
  if labels == '' then return {offer} end
  local offers, found = K('offers:' .. plain), {plain}
  redis.call('ZADD', offers, int(now), offer)
  redis.call('ZREMRANGEBYSCORE', offers, '-inf', int(now - OFFER_MS))
  redis.call('EXPIRE', offers, OFFER_MS / 1000)
  for _, class in ipairs(redis.call('SMEMBERS', K('labelled:' .. plain))) do
    if within(select(2, split_class(class)), labels) then found[#found + 1] = class end
  end
  return found
end

local vclock = tonumber(redis.call('GET', K('vclock')) or 0)

-- The first job of the first lane among the classes that still have room, and its class.
local function first(room, offer_of)
  local id, chosen, least, first_order
  for class, offer in pairs(offer_of) do
    local left = room[offer]
    local head = left > 0 and redis.call('ZRANGE', K('lanes:' .. class), 0, 0, 'WITHSCORES') or {}
    if head[1] then
      local job, vt = redis.call('ZRANGE', place('wait', class, head[1]), 0, 0, 'WITHSCORES'), tonumber(head[2])
      local order = tonumber(job[2])
      if not least or vt < least or (vt == least and order < first_order) then
        id, chosen, least, first_order = job[1], class, vt, order
      end
    elseif left > 0 and not string.find(class, '+', 1, true) then
      redis.call('DEL', K('bell:' .. class))
    end
  end
  if id and least > vclock then
    vclock = least
    redis.call('SET', K('vclock'), vclock)
  end
  return id, chosen
end

local function take(id)
  local f = redis.call('HMGET', J(id), 'attempts', 'added_ms', 'spec', 'eta_ms', 'trace')
  local seq, attempt = int(redis.call('INCR', K('seq'))), (f[1] or 0) + 1
  redis.call('ZADD', K('held'), int(now + ARGV[3]), id)
  local charged = occupy(id)
  if f[4] then
    learn(job_of(id).lane, now - f[4])
    redis.call('HDEL', J(id), 'eta_ms')
  end
  redis.call('HSET', J(id), 'state', 'assigned', 'seq', seq, 'holder', ARGV[1], 'machine', '', 'attempts', int(attempt),
    'charged', charged, 'claimed_ms', int(now),
    'trace', longer(f[5], now, {'Dispatched job ' .. id .. ' [try ' .. int(attempt - 1) .. ']'}))
  count('claims')
  return answer(id, seq, attempt, f[2], f[3])
end

local last = redis.call('HMGET', mine, 'request', 'given')
if last[1] == ARGV[2] then return again(last[2]) end
local room, offer_of, taken, found, left = {}, {}, {}, {}, tonumber(ARGV[4])
for i = 5, #ARGV, 2 do
  room[ARGV[i]] = tonumber(ARGV[i + 1])
  for _, class in ipairs(classes_of(ARGV[i])) do offer_of[class] = ARGV[i] end
end
while left > 0 do
  local id, class = first(room, offer_of)
  if not id then break end
  local job = take(id)
  taken[#taken + 1] = id .. ':' .. int(job[2])
  found[#found + 1] = job
  local offer = offer_of[class]
  room[offer], left = room[offer] - 1, left - job_of(id).slots
end
if #found == 0 then
  for offer, n in pairs(room) do
    if n > 0 then redis.call('DEL', K('bell:' .. offer)) end
  end
else
  redis.call('HSET', mine, 'request', ARGV[2], 'given', table.concat(taken, ' '))
  redis.call('EXPIRE', mine, 3600)
end
return found
