-- beat: a dispatcher says that it lives and what it has; no arrow
-- ARGV: install, record
redis.call('HSET', K('dispatchers'), ARGV[1], ARGV[2])
redis.call('HSET', K('beats'), ARGV[1], int(now_ms()))
return 'OK'
