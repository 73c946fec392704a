-- resend: a dead job's callback is due now, also one that was delivered or given up; no arrow.
-- The horizon counts anew, so that it is tried as long as a first one.
-- ARGV: id
-- Answers ok, not_found (also of a job that is being forgotten: its output may be gone), not_ended, no_callback.
local id, now = ARGV[1], now_ms()
local f = redis.call('HMGET', J(id), 'state', 'cb', 'leaving')
if not f[1] or f[3] then return 'not_found' end
if f[1] ~= 'dead' then return 'not_ended' end
if not f[2] or f[2] == '' then return 'no_callback' end
redis.call('HSET', J(id), 'resent_ms', int(now))
redis.call('ZREM', K('unsent'), id)
redis.call('ZADD', K('outbox'), int(now), id)
return 'ok'
