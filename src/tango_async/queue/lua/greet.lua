-- greet: said on every new connection; no arrow. Notices a server that was restarted, replaced or emptied.
-- ARGV: the server's run id, quiet_ms
-- Answers 1 if the server is another one than before.
if redis.call('HGET', K('server'), 'run_id') == ARGV[1] then return 0 end
redis.call('HSET', K('server'), 'run_id', ARGV[1], 'quiet_until', int(now_ms() + ARGV[2]))
return 1
