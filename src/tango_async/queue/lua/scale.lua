-- scale: how many more machines a dispatcher may make for the jobs of an image that wait, given what all make; no arrow
-- ARGV: class that it offers, instance, jobs that wait, jobs that are reason for one, its fresh machines, most, keep_ms
-- Answers their number. It may make them until it asks again; others count them until keep_ms are over. They count those
-- only that serve all the jobs they offer to take: a job would wait for ever for machines that are not for it.
local image, labels = split_class(ARGV[1])
local key, now = K('fresh:' .. image), now_ms()
local waiting, each, mine, most, keep_ms = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]),
  tonumber(ARGV[7])
local fresh, granted, known = mine, 0, redis.call('HGETALL', key)
for i = 1, #known, 2 do
  local theirs, more, until_ms, offered = string.match(known[i + 1], '^(%d+)|(%d+)|(%d+)|?(.*)$')
  -- A clock that was set back keeps nothing for longer.
  if tonumber(until_ms) < now or tonumber(until_ms) > now + keep_ms then
    redis.call('HDEL', key, known[i])
  elseif known[i] ~= ARGV[2] and within(labels, offered) then
    fresh, granted = fresh + theirs, granted + more
  end
end
-- The job that a fresh one was made for does not wait any more, but was a reason for it.
local reason = math.ceil((waiting + fresh) / each)
local more = math.max(0, math.min(most, reason - fresh - granted))
if mine + more == 0 then
  redis.call('HDEL', key, ARGV[2])
else
  redis.call('HSET', key, ARGV[2], int(mine) .. '|' .. int(more) .. '|' .. int(now + keep_ms) .. '|' .. labels)
  redis.call('PEXPIRE', key, keep_ms)
end
return more
