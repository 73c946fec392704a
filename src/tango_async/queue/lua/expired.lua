-- expired: lists dead jobs that history no longer keeps and whose callback is not pending; no arrow
-- ARGV: most dead jobs, longest age_ms, most in one call
-- Answers a list of {id, output reference}.
local found, limit = {}, tonumber(ARGV[3])
local surplus = redis.call('ZCARD', K('dead')) - ARGV[1]
local oldest = now_ms() - ARGV[2]
-- A look further than the answer, past those whose callbacks are pending.
local all = redis.call('ZRANGE', K('dead'), 0, limit * 20 - 1, 'WITHSCORES')
for i = 1, #all, 2 do
  if #found == limit then break end
  if (i + 1) / 2 <= surplus or tonumber(all[i + 1]) < oldest then
    if not redis.call('ZSCORE', K('outbox'), all[i]) then
      found[#found + 1] = {tonumber(all[i]), redis.call('HGET', J(all[i]), 'output') or ''}
    end
  end
end
return found
