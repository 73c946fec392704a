-- unnamed: which of these stored feedbacks no job has, nor can still end with; no arrow
-- ARGV: references, which begin with "<id>.<seq>."
-- One whose job is not known is not among the answer: a Redis that came back empty condemns nothing.
local found = {}
for _, ref in ipairs(ARGV) do
  local id, seq = string.match(ref, '^(%d+)%.(%d+)%.')
  if id then
    local output = redis.call('HGET', J(id), 'output')
    if redis.call('EXISTS', J(id)) == 1 and output ~= ref and not holds(id, seq) then found[#found + 1] = ref end
  end
end
return found
