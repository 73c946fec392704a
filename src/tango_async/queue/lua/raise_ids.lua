-- raise_ids: the next id is above the high-water mark that the file store keeps; no arrow.
-- ARGV: mark
if tonumber(redis.call('GET', K('ids')) or '-1') < tonumber(ARGV[1]) then
  redis.call('SET', K('ids'), ARGV[1])
  return 1
end
return 0
