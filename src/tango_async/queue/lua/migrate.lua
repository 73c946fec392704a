-- migrate: brings data of an older format to this one, all at once; no arrow. The same again changes nothing.
-- Format 1, which has no number, is that of releases before fair share: their queued jobs are in wait:<class>, and jobs
-- know no lane. What is kept of the queue beside the jobs themselves is made anew from them.
-- ARGV: the format
-- Answers the number of live jobs.
local now = now_ms()
if tonumber(redis.call('HGET', K('server'), 'format') or 0) >= tonumber(ARGV[1]) then return 0 end

local function course_of(lab, courselab)
  local key = string.sub(lab, 1, #lab - #courselab)
  return key .. (string.match(courselab, '^(.+)%-[^-]*$') or courselab)
end

local function fill(id)
  local f = redis.call('HMGET', J(id), 'spec', 'lane')
  local spec = cmsgpack.unpack(f[1])
  if not f[2] then
    redis.call('HSET', J(id), 'lane', course_of(spec.lab, spec.courselab), 'who', '', 'order', int(100 * PRIORITY + id))
  end
  local defaults = {slots = math.max(1, math.ceil(spec.limits.cores)), longest_ms = spec.limits.timeout_s * 1000 + 60000}
  for name, value in pairs(defaults) do redis.call('HSETNX', J(id), name, int(value)) end
  local lane = lane_key(redis.call('HGET', J(id), 'lane'))
  for name, value in pairs({weight = '1', cap = '0', each = '0'}) do redis.call('HSETNX', lane, name, value) end
end

local queued, held = redis.call('ZRANGE', K('queued'), 0, -1), redis.call('ZRANGE', K('held'), 0, -1)
redis.call('DEL', K('classes'), K('queued'))
for _, id in ipairs(queued) do
  fill(id)
  local f = redis.call('HMGET', J(id), 'class', 'lane', 'who')
  local class, lane, who = f[1], f[2], f[3]
  redis.call('DEL', K('wait:' .. class), place('wait', class, lane), place('parked', class, lane),
    mine_key(class, lane, who), of('heads', lane, who), K('classes:' .. lane), K('lanes:' .. class),
    K('labelled:' .. split_class(class)))
end
for _, id in ipairs(held) do
  if redis.call('EXISTS', J(id)) == 1 then
    fill(id)
    for name, value in pairs({charged = '0', claimed_ms = int(now)}) do redis.call('HSETNX', J(id), name, value) end
    local f = redis.call('HMGET', J(id), 'lane', 'who')
    redis.call('SADD', K('running:' .. f[1]), id)
    if f[2] ~= '' then redis.call('SADD', of('running', f[1], f[2]), id) end
  end
end
for _, id in ipairs(queued) do enqueue(id) end
redis.call('HSET', K('server'), 'format', ARGV[1])
return #queued + #held
