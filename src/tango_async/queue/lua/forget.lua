-- forget: dead -> nothing, once their outputs are gone from the store
-- ARGV: ids
for _, id in ipairs(ARGV) do
  local f = redis.call('HMGET', J(id), 'lab', 'out', 'state')
  if f[3] == 'dead' then
    if redis.call('HGET', K('outputs:' .. f[1]), f[2]) == id then redis.call('HDEL', K('outputs:' .. f[1]), f[2]) end
    redis.call('DEL', J(id))
  end
  redis.call('ZREM', K('dead'), id)
  redis.call('ZREM', K('unsent'), id)
end
return 'OK'
