-- raise_ids: the next id is above the high-water mark that the file store keeps; no arrow.
-- ARGV: mark
-- Answers the last id that this server knew before, or -1.
local known = tonumber(redis.call('GET', K('ids')) or '-1')
if known < tonumber(ARGV[1]) then redis.call('SET', K('ids'), ARGV[1]) end
return known
