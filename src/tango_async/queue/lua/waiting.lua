-- waiting: how many jobs wait in each requirement class; no arrow
-- Answers a list of {class, jobs}.
local found = {}
for _, class in ipairs(redis.call('SMEMBERS', K('classes'))) do
  local n = 0
  for _, lane in ipairs(redis.call('SMEMBERS', K('queues:' .. class))) do
    n = n + redis.call('ZCARD', place('wait', class, lane)) + redis.call('ZCARD', place('parked', class, lane))
  end
  found[#found + 1] = {class, n}
end
return found
