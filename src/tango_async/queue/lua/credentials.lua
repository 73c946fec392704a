-- credentials: those that came with a held job
-- ARGV: id, seq
-- Answers them as they were packed, or nil.
if not holds(ARGV[1], ARGV[2]) then return nil end
return redis.call('GET', secret_key(ARGV[1]))
