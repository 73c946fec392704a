-- Fair share, shared by all scripts: put behind _common.lua.
-- A queued job is in `queued` and either in wait:<class><tab><lane> (it can be claimed) or in
-- parked:<class><tab><lane> (a better one of its submitter waits, or as many run as the lane allows each).
-- A lane stands in lanes:<class>, at its virtual time, iff it has a job to claim there and is below its cap.
local T = '\t'
local PENALTY, PRIORITY = 100, 2 ^ 40
local MEMORY_S = 30 * 86400
local FIRST_GUESS_MS = 1000

local function lane_key(lane) return K('lane:' .. lane) end
local function place(kind, class, lane) return K(kind .. ':' .. class .. T .. lane) end
local function of(kind, lane, who) return K(kind .. ':' .. lane .. T .. who) end
local function mine_key(class, lane, who) return K('mine:' .. class .. T .. lane .. T .. who) end

-- A lane as it stands, read once in a script: its weight, caps, virtual time and the mean time of a job in ms. Of a
-- lane that has ended none that is what the last ones of all lanes took.
local known_lanes = {}
local function lane_of(name)
  if not known_lanes[name] then
    local f = redis.call('HMGET', lane_key(name), 'weight', 'cap', 'each', 'vt', 'mean_ms')
    known_lanes[name] = {weight = math.max(tonumber(f[1] or 0), 0.001), cap = tonumber(f[2] or 0),
      each = tonumber(f[3] or 0), vt = f[4] or '0', took = f[5],
      mean = tonumber(f[5] or redis.call('GET', K('mean_ms')) or FIRST_GUESS_MS)}
  end
  return known_lanes[name]
end

-- What never changes of a job, read once in a script.
local known_jobs = {}
local function job_of(id)
  if not known_jobs[id] then
    local f = redis.call('HMGET', J(id), 'class', 'lane', 'who', 'order', 'slots', 'longest_ms')
    known_jobs[id] = {class = f[1], lane = f[2], who = f[3], order = f[4], slots = tonumber(f[5]), longest = tonumber(f[6])}
  end
  return known_jobs[id]
end

-- A mean, as it is after one more value.
local function blend(known, value)
  return string.format('%.3f', math.max(known and 0.9 * known + 0.1 * value or value, 1))
end

-- The lane's virtual time moves, and with it its place among the others. More fields of the lane, names and values, are
-- written with it.
local function advance(lane, by, ...)
  local vt = string.format('%.3f', lane_of(lane).vt + by)
  lane_of(lane).vt = vt
  redis.call('HSET', lane_key(lane), 'vt', vt, ...)
  for _, class in ipairs(redis.call('HKEYS', K('classes:' .. lane))) do
    redis.call('ZADD', K('lanes:' .. class), 'XX', vt, lane)
  end
end

-- Offers the lane's jobs of this class, or hides them, as its cap and its jobs say. Answers whether they are offered,
-- and whether they were hidden before.
local function refresh_lane(class, lane)
  local cap, lanes = lane_of(lane).cap, K('lanes:' .. class)
  local open = redis.call('EXISTS', place('wait', class, lane)) == 1
    and (cap == 0 or redis.call('SCARD', K('running:' .. lane)) < cap)
  if not open then
    redis.call('ZREM', lanes, lane)
  elseif not redis.call('ZSCORE', lanes, lane) then
    -- Who was away has saved up nothing. It comes in where the last one had its turn, but never behind those that
    -- wait: their time may have gone back, when their jobs took less than was thought.
    local clock = tonumber(redis.call('GET', K('vclock')) or '0')
    local least = tonumber(redis.call('ZRANGE', lanes, 0, 0, 'WITHSCORES')[2] or clock)
    local behind = math.min(clock, least) - lane_of(lane).vt
    if behind > 0 then advance(lane, behind) end
    redis.call('ZADD', lanes, lane_of(lane).vt, lane)
    return true, true
  end
  return open, false
end

-- Of a submitter only the best job of each class is offered, and none at the cap. That is so without a cap, too, so
-- that one that is set or lifted later finds every job where it belongs.
local function refresh_head(class, lane, who)
  local each, heads = lane_of(lane).each, of('heads', lane, who)
  local shown, best = redis.call('HGET', heads, class), nil
  if each == 0 or redis.call('SCARD', of('running', lane, who)) < each then
    best = redis.call('ZRANGE', mine_key(class, lane, who), 0, 0)[1]
  end
  if shown and shown ~= best then
    local order = redis.call('ZSCORE', place('wait', class, lane), shown)
    redis.call('HDEL', heads, class)
    if order then
      redis.call('ZREM', place('wait', class, lane), shown)
      redis.call('ZADD', place('parked', class, lane), order, shown)
    end
  end
  if best and shown ~= best then
    redis.call('HSET', heads, class, best)
    redis.call('ZADD', place('wait', class, lane), job_of(best).order, best)
    redis.call('ZREM', place('parked', class, lane), best)
  end
end

local function capped(lane) return lane_of(lane).cap > 0 or lane_of(lane).each > 0 end

-- A lane is remembered as long as it has jobs, and a while longer.
local function forget_later(lane)
  if redis.call('EXISTS', K('classes:' .. lane), K('running:' .. lane)) == 0 then
    redis.call('EXPIRE', lane_key(lane), MEMORY_S)
  end
end

-- A class (IMAGE, IMAGE|quiet, IMAGE|+a+b, IMAGE|quiet+a+b) without its labels, and those, as '+a+b' or ''.
local function split_class(class)
  if not string.find(class, '+', 1, true) then return class, '' end
  local plain, labels = string.match(class, '^([^+]*)(.*)$')
  return string.gsub(plain, '|$', ''), labels
end

-- Are all labels of the one among the other's?
local function within(labels, others)
  for label in string.gmatch(labels, '[^+]+') do
    if not string.find(others .. '+', '+' .. label .. '+', 1, true) then return false end
  end
  return true
end

-- Wakes who could claim a job of the class: hosts listen for what they offer, all their labels, and for what requires
-- none.
local function ring_class(class)
  local plain, labels = split_class(class)
  if labels == '' then return ring(K('bell:' .. class)) end
  for _, offer in ipairs(redis.call('ZRANGE', K('offers:' .. plain), 0, -1)) do
    if within(labels, select(2, split_class(offer))) then ring(K('bell:' .. offer)) end
  end
end

-- `labelled` knows the classes of a kind that require labels, as long as a job of theirs is queued.
local function count_class(class, lane, by)
  local plain, labels = split_class(class)
  for _, classes in ipairs({K('classes'), K('classes:' .. lane)}) do
    if redis.call('HINCRBY', classes, class, by) == 0 then redis.call('HDEL', classes, class) end
  end
  if labels == '' then return end
  if redis.call('HEXISTS', K('classes'), class) == 1 then
    redis.call('SADD', K('labelled:' .. plain), class)
  else
    redis.call('SREM', K('labelled:' .. plain), class)
  end
end

-- nothing, held -> queued
local function enqueue(id)
  local job = job_of(id)
  local class, lane, who = job.class, job.lane, job.who
  redis.call('ZADD', K('queued'), id, id)
  count_class(class, lane, 1)
  redis.call('PERSIST', lane_key(lane))
  if who ~= '' then
    redis.call('ZADD', mine_key(class, lane, who), job.order, id)
    redis.call('ZADD', place('parked', class, lane), job.order, id)
    refresh_head(class, lane, who)
  else
    redis.call('ZADD', place('wait', class, lane), job.order, id)
  end
  if refresh_lane(class, lane) then ring_class(class) end
end

-- queued -> held, dead
local function dequeue(id)
  local job = job_of(id)
  local class, lane, who = job.class, job.lane, job.who
  redis.call('ZREM', K('queued'), id)
  if redis.call('ZREM', place('wait', class, lane), id) == 0 then
    redis.call('ZREM', place('parked', class, lane), id)
  end
  if who ~= '' then
    redis.call('ZREM', mine_key(class, lane, who), id)
    refresh_head(class, lane, who)
  end
  refresh_lane(class, lane)
  count_class(class, lane, -1)
end

local function refresh_all(lane, who)
  for _, class in ipairs(redis.call('HKEYS', K('classes:' .. lane))) do
    if who ~= '' then refresh_head(class, lane, who) end
    local _, anew = refresh_lane(class, lane)
    if anew then ring_class(class) end
  end
end

-- The caps are others now. Whoever is hidden by a cap has a job that runs.
local function recap(lane)
  local seen = {}
  for _, id in ipairs(redis.call('SMEMBERS', K('running:' .. lane))) do
    local who = job_of(id).who
    if not seen[who] then refresh_all(lane, who) end
    seen[who] = true
  end
end

-- queued -> held. Counted among its lane's and its submitter's running jobs, and charged with what such a job
-- takes as a rule: answers that.
local function occupy(id)
  local job = job_of(id)
  local lane, who = job.lane, job.who
  redis.call('SADD', K('running:' .. lane), id)
  if who ~= '' then redis.call('SADD', of('running', lane, who), id) end
  dequeue(id)
  local charge = string.format('%.3f', lane_of(lane).mean * job.slots / lane_of(lane).weight)
  advance(lane, charge)
  if capped(lane) then refresh_all(lane, who) end
  return charge
end

-- No longer held. A job that ended is charged with the time that it had its slots, any other with nothing, instead of
-- what it was `charged` when it was claimed.
local function vacate(id, now, ended, charged, claimed_ms)
  local job = job_of(id)
  local lane, who = job.lane, job.who
  if redis.call('SREM', K('running:' .. lane), id) == 0 then return end
  if who ~= '' then redis.call('SREM', of('running', lane, who), id) end
  if ended then
    -- A clock that was set forward meanwhile is not the lane's doing.
    local took = math.min(math.max(now - claimed_ms, 0), job.longest)
    lane_of(lane).took = blend(lane_of(lane).took, took)
    redis.call('SET', K('mean_ms'), blend(redis.call('GET', K('mean_ms')), took))
    advance(lane, took * job.slots / lane_of(lane).weight - charged, 'mean_ms', lane_of(lane).took)
  else
    advance(lane, -charged)
  end
  -- When nothing runs, nobody owes anything to those who come later.
  if redis.call('ZCARD', K('held')) == 0 then
    redis.call('SET', K('vclock'), math.max(lane_of(lane).vt, redis.call('GET', K('vclock')) or 0))
  end
  if capped(lane) then refresh_all(lane, who) end
  forget_later(lane)
end

-- Remembers by how much the start that was foretold of a job was wrong.
local function learn(lane, error_ms)
  local known = redis.call('HGET', lane_key(lane), 'eta_error_ms')
  local mean = known and 0.9 * known + 0.1 * math.abs(error_ms) or math.abs(error_ms)
  redis.call('HSET', lane_key(lane), 'eta_error_ms', int(mean))
end
