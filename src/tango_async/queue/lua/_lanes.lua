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
local function number_of(lane, field) return tonumber(redis.call('HGET', lane_key(lane), field) or '0') end
local function weight_of(lane) return math.max(number_of(lane, 'weight'), 0.001) end
-- What a job takes, in ms: of a lane that has ended none, what the last ones of all lanes took.
local function mean_of(lane)
  return tonumber(redis.call('HGET', lane_key(lane), 'mean_ms') or redis.call('GET', K('mean_ms')) or FIRST_GUESS_MS)
end

-- A mean, as it is after one more value.
local function blend(known, value)
  return string.format('%.3f', math.max(known and 0.9 * known + 0.1 * value or value, 1))
end

-- The lane's virtual time moves, and with it its place among the others.
local function advance(lane, by)
  local vt = redis.call('HINCRBYFLOAT', lane_key(lane), 'vt', string.format('%.3f', by))
  for _, class in ipairs(redis.call('HKEYS', K('classes:' .. lane))) do
    redis.call('ZADD', K('lanes:' .. class), 'XX', vt, lane)
  end
end

-- Offers the lane's jobs of this class, or hides them, as its cap and its jobs say. True if they were hidden before.
local function refresh_lane(class, lane)
  local cap, lanes = number_of(lane, 'cap'), K('lanes:' .. class)
  local open = redis.call('EXISTS', place('wait', class, lane)) == 1
    and (cap == 0 or redis.call('SCARD', K('running:' .. lane)) < cap)
  if not open then
    redis.call('ZREM', lanes, lane)
  elseif not redis.call('ZSCORE', lanes, lane) then
    -- Who was away has saved up nothing. It comes in where the last one had its turn, but never behind those that
    -- wait: their time may have gone back, when their jobs took less than was thought.
    local clock = tonumber(redis.call('GET', K('vclock')) or '0')
    local least = tonumber(redis.call('ZRANGE', lanes, 0, 0, 'WITHSCORES')[2] or clock)
    local behind = math.min(clock, least) - number_of(lane, 'vt')
    if behind > 0 then advance(lane, behind) end
    redis.call('ZADD', lanes, redis.call('HGET', lane_key(lane), 'vt') or '0', lane)
    return true
  end
end

-- Of a submitter only the best job of each class is offered, and none at the cap. That is so without a cap, too, so
-- that one that is set or lifted later finds every job where it belongs.
local function refresh_head(class, lane, who)
  local each, heads = number_of(lane, 'each'), of('heads', lane, who)
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
    redis.call('ZADD', place('wait', class, lane), redis.call('HGET', J(best), 'order'), best)
    redis.call('ZREM', place('parked', class, lane), best)
  end
end

local function capped(lane) return number_of(lane, 'cap') > 0 or number_of(lane, 'each') > 0 end

-- A lane is remembered as long as it has jobs, and a while longer.
local function forget_later(lane)
  if redis.call('EXISTS', K('classes:' .. lane), K('running:' .. lane)) == 0 then
    redis.call('EXPIRE', lane_key(lane), MEMORY_S)
  end
end

-- nothing, held -> queued
local function enqueue(id)
  local f = redis.call('HMGET', J(id), 'class', 'lane', 'who', 'order')
  local class, lane, who = f[1], f[2], f[3]
  redis.call('ZADD', K('queued'), id, id)
  redis.call('HINCRBY', K('classes'), class, 1)
  redis.call('HINCRBY', K('classes:' .. lane), class, 1)
  redis.call('PERSIST', lane_key(lane))
  if who ~= '' then
    redis.call('ZADD', mine_key(class, lane, who), f[4], id)
    redis.call('ZADD', place('parked', class, lane), f[4], id)
    refresh_head(class, lane, who)
  else
    redis.call('ZADD', place('wait', class, lane), f[4], id)
  end
  refresh_lane(class, lane)
  if redis.call('ZSCORE', K('lanes:' .. class), lane) then ring(K('bell:' .. class)) end
end

-- queued -> held, dead
local function dequeue(id)
  local f = redis.call('HMGET', J(id), 'class', 'lane', 'who')
  local class, lane, who = f[1], f[2], f[3]
  redis.call('ZREM', K('queued'), id)
  redis.call('ZREM', place('wait', class, lane), id)
  redis.call('ZREM', place('parked', class, lane), id)
  if who ~= '' then
    redis.call('ZREM', mine_key(class, lane, who), id)
    refresh_head(class, lane, who)
  end
  refresh_lane(class, lane)
  for _, classes in ipairs({K('classes'), K('classes:' .. lane)}) do
    if redis.call('HINCRBY', classes, class, -1) == 0 then redis.call('HDEL', classes, class) end
  end
  forget_later(lane)
end

local function refresh_all(lane, who)
  for _, class in ipairs(redis.call('HKEYS', K('classes:' .. lane))) do
    if who ~= '' then refresh_head(class, lane, who) end
    if refresh_lane(class, lane) then ring(K('bell:' .. class)) end
  end
end

-- The caps are others now. Whoever is hidden by a cap has a job that runs.
local function recap(lane)
  local seen = {}
  for _, id in ipairs(redis.call('SMEMBERS', K('running:' .. lane))) do
    local who = redis.call('HGET', J(id), 'who')
    if not seen[who] then refresh_all(lane, who) end
    seen[who] = true
  end
end

-- queued -> held. Counted among its lane's and its submitter's running jobs, and charged with what such a job
-- takes as a rule.
local function occupy(id, lane, who, now)
  redis.call('SADD', K('running:' .. lane), id)
  if who ~= '' then redis.call('SADD', of('running', lane, who), id) end
  dequeue(id)
  local charge = mean_of(lane) * redis.call('HGET', J(id), 'slots') / weight_of(lane)
  redis.call('HSET', J(id), 'charged', string.format('%.3f', charge), 'claimed_ms', int(now))
  advance(lane, charge)
  if capped(lane) then refresh_all(lane, who) end
end

-- No longer held. A job that ended is charged with the time that it had its slots, any other with nothing.
local function vacate(id, now, ended)
  local f = redis.call('HMGET', J(id), 'lane', 'who', 'charged', 'claimed_ms', 'slots', 'longest_ms')
  local lane, who = f[1], f[2]
  if redis.call('SREM', K('running:' .. lane), id) == 0 then return end
  if who ~= '' then redis.call('SREM', of('running', lane, who), id) end
  local took = 0
  if ended then
    -- A clock that was set forward meanwhile is not the lane's doing.
    took = math.min(math.max(now - f[4], 0), tonumber(f[6]))
    redis.call('HSET', lane_key(lane), 'mean_ms', blend(redis.call('HGET', lane_key(lane), 'mean_ms'), took))
    redis.call('SET', K('mean_ms'), blend(redis.call('GET', K('mean_ms')), took))
  end
  advance(lane, took * f[5] / weight_of(lane) - f[3])
  -- When nothing runs, nobody owes anything to those who come later.
  if redis.call('ZCARD', K('held')) == 0 then
    redis.call('SET', K('vclock'), math.max(number_of(lane, 'vt'), redis.call('GET', K('vclock')) or 0))
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
