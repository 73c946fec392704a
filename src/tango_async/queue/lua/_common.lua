-- Shared by all scripts: put before each of them. KEYS[1] is the prefix of every key.
local P = KEYS[1]
local function K(name) return P .. name end
local function J(id) return P .. 'job:' .. id end

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function int(n) return string.format('%.0f', n) end

-- The trace with more lines, each "<ms>|<text>\n". Bounded, so that no loop can grow a record for ever; the last line
-- of a life (`whatever`) is always written.
local function longer(trace, now, texts, whatever)
  if #texts == 0 or (trace and #trace >= 16384 and not whatever) then return trace or '' end
  local at = int(now) .. '|'
  return (trace or '') .. at .. table.concat(texts, '\n' .. at) .. '\n'
end

local function count(name) redis.call('HINCRBY', K('counters'), name, 1) end

local function ring(key)
  if redis.call('LLEN', key) < 64 then redis.call('RPUSH', key, '1') end
end

-- Is the job held, and by this seq? Then its fields of these names, too, by the same reading.
local function holds(id, seq, ...)
  local f = redis.call('HMGET', J(id), 'state', 'seq', ...)
  if (f[1] == 'assigned' or f[1] == 'running') and f[2] == seq then return true, unpack(f, 3) end
  return false
end
