-- greet: said on every new connection; no arrow. Notices a server that was restarted, replaced or emptied.
-- ARGV: the server's run id, quiet_ms, the format that the caller knows
-- Answers the format of the data, 0 if it has no number. Nothing is written to data of a newer one.
local f = redis.call('HMGET', K('server'), 'run_id', 'format')
local format = tonumber(f[2] or 0)
if format <= tonumber(ARGV[3]) and f[1] ~= ARGV[1] then
  redis.call('HSET', K('server'), 'run_id', ARGV[1], 'quiet_until', int(now_ms() + ARGV[2]))
end
return format
