-- position: how many jobs will start before each of these, and when it will, under fair share; no arrow
-- ARGV: slots of all living dispatchers, number of classes they offer, those classes, then ids
-- Answers for each id {jobs before it (-1: it is not queued), ms until it starts (-1: nobody knows), mean error of
-- such a forecast in its lane in ms (-1: none was tried)}.
local now, slots, offered, lanes = now_ms(), tonumber(ARGV[1]), {}, {}
local busy_ms = 0

for i = 3, 2 + ARGV[2] do offered[ARGV[i]] = true end

local function look(lane)
  local f = redis.call('HMGET', lane_key(lane), 'vt', 'eta_error_ms', 'cap')
  local running = redis.call('SCARD', K('running:' .. lane))
  local found = {vt = tonumber(f[1] or 0), mean = lane_of(lane).mean, weight = lane_of(lane).weight, waiting = 0,
    error = tonumber(f[2] or -1), cap = tonumber(f[3] or 0), running = running, classes = {}}
  local queued = redis.call('HGETALL', K('classes:' .. lane))
  for i = 1, #queued, 2 do
    if offered[queued[i]] then
      found.classes[#found.classes + 1] = queued[i]
      found.waiting = found.waiting + queued[i + 1]
    end
  end
  -- A job that runs has half of its time before it, as a rule.
  busy_ms = busy_ms + running * found.mean / 2
  return found
end

for class in pairs(offered) do
  for _, lane in ipairs(redis.call('ZRANGE', K('lanes:' .. class), 0, 199)) do
    if not lanes[lane] then lanes[lane] = look(lane) end
  end
end

-- Those of its own lane that come before it.
local function ahead(mine, lane, order)
  local n = 0
  for _, class in ipairs(mine.classes) do
    n = n + redis.call('ZCOUNT', place('wait', class, lane), '-inf', '(' .. order)
      + redis.call('ZCOUNT', place('parked', class, lane), '-inf', '(' .. order)
  end
  return n
end

-- ms until a cap lets it in, when so many of those that the cap counts are before it or run.
local function kept_back(cap, before, running, mean)
  return cap > 0 and math.max(0, before + running + 1 - cap) * mean / cap or 0
end

local function forecast(id)
  local f = redis.call('HMGET', J(id), 'state', 'class', 'lane', 'order', 'who')
  if f[1] ~= 'queued' then return {-1, -1, -1} end
  local lane = f[3]
  if not lanes[lane] then lanes[lane] = look(lane) end
  local mine = lanes[lane]
  local of_lane = ahead(mine, lane, f[4])
  local before = of_lane
  local work, starts_at = before * mine.mean, mine.vt + before * mine.mean / mine.weight
  for name, other in pairs(lanes) do
    if name ~= lane and starts_at > other.vt then
      local n = math.min(other.waiting, math.ceil((starts_at - other.vt) * other.weight / other.mean))
      before, work = before + n, work + n * other.mean
    end
  end
  if not offered[f[2]] or slots == 0 then return {before, -1, mine.error} end
  local eta = (work + busy_ms) / slots
  if before < slots - redis.call('ZCARD', K('held')) then eta = 0 end
  eta = math.max(eta, kept_back(mine.cap, of_lane, mine.running, mine.mean))
  local who, each = f[5], lane_of(lane).each
  if who ~= '' and each > 0 then
    local theirs = redis.call('ZCOUNT', mine_key(f[2], lane, who), '-inf', '(' .. f[4])
    eta = math.max(eta, kept_back(each, theirs, redis.call('SCARD', of('running', lane, who)), mine.mean))
  end
  -- Not when the server has no room: what is foretold is told all the same.
  redis.pcall('HSETNX', J(id), 'eta_ms', int(now + eta))
  return {before, math.ceil(eta), mine.error}
end

local found = {}
for i = 3 + ARGV[2], #ARGV do found[#found + 1] = forecast(ARGV[i]) end
return found
