-- rights: which of the commands that are used here an ACL denies; no arrow. Each is tried on a key that is of nobody.
-- Answers their names.
local key, missing = K('rights'), {}
local tries = {
  {'TIME'}, {'GET', key}, {'SET', key, '1', 'PX', '1000'}, {'INCR', key}, {'APPEND', key, ''}, {'STRLEN', key},
  {'PERSIST', key}, {'EXPIRE', key, '1'}, {'PEXPIRE', key, '1'}, {'EXISTS', key}, {'DEL', key},
  {'HSET', key, 'f', '1'}, {'HSETNX', key, 'f', '1'}, {'HGET', key, 'f'}, {'HMGET', key, 'f'}, {'HGETALL', key},
  {'HKEYS', key}, {'HEXISTS', key, 'f'}, {'HINCRBY', key, 'f', '1'}, {'HDEL', key, 'f'},
  {'RPUSH', key, '1'}, {'LLEN', key}, {'LTRIM', key, '1', '0'},
  {'SADD', key, '1'}, {'SMEMBERS', key}, {'SCARD', key}, {'SREM', key, '1'},
  {'ZADD', key, '1', '1'}, {'ZSCORE', key, '1'}, {'ZCARD', key}, {'ZCOUNT', key, '0', '1'}, {'ZRANGE', key, '0', '0'},
  {'ZRANGEBYSCORE', key, '0', '0'}, {'ZREMRANGEBYSCORE', key, '0', '0'}, {'ZREM', key, '1'},
}
for _, words in ipairs(tries) do
  local answer = redis.pcall(unpack(words))
  if type(answer) == 'table' and answer.err and string.find(answer.err, "can't", 1, true) then
    missing[#missing + 1] = string.lower(words[1])
  end
end
redis.pcall('DEL', key)
return missing
