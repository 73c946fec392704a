-- retire: dead jobs that are to be forgotten, before their outputs are removed; no arrow. From here on their
-- callbacks cannot be sent again.
-- ARGV: '1' if pending callbacks are given up, else such jobs stay as they are; then ids
-- Answers a list of {id, output reference, lab, output name, 1 if a callback was given up} of those that may
-- go; the references of what is no dead job are empty.
local found = {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local f = redis.call('HMGET', J(id), 'state', 'output', 'lab', 'out')
  local pending = redis.call('ZSCORE', K('outbox'), id)
  if f[1] ~= 'dead' then
    found[#found + 1] = {tonumber(id), '', '', '', 0}
  elseif ARGV[1] == '1' or not pending then
    redis.call('ZREM', K('outbox'), id)
    redis.call('HSET', J(id), 'leaving', '1')
    found[#found + 1] = {tonumber(id), f[2], f[3], f[4], pending and 1 or 0}
  end
end
return found
