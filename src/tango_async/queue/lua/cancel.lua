-- cancel: queued -> dead at once; assigned/running: sets the intent that every later arrow looks at
-- ARGV: id, text for the trace, the short feedback
-- Answers cancelled, requested, completed, not_found.
local state = redis.call('HGET', J(ARGV[1]), 'state')
if not state then return 'not_found' end
if state == 'dead' then return 'completed' end
return call_off(ARGV[1], now_ms(), ARGV[2], ARGV[3])
