-- extend: assigned/running stay what they are, for another lease
-- ARGV: lease_ms, then id, seq, id, seq …
-- Answers for each: OK, CANCEL (extended, but the holder should end it as cancelled), or STALE.
local now, answers = now_ms(), {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local mine, intent = holds(id, ARGV[i + 1], 'intent')
  if mine then
    redis.call('ZADD', K('held'), int(now + ARGV[1]), id)
    answers[#answers + 1] = intent == 'cancel' and 'CANCEL' or 'OK'
  else
    answers[#answers + 1] = 'STALE'
  end
end
return answers
