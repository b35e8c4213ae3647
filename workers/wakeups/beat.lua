-- A process says that it lives. KEYS[1] alive: sorted set process -> until when that counts (s). ARGV: process, for_s.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local function s(number) return string.format('%.6f', number) end
redis.call('ZADD', KEYS[1], s(now + ARGV[2]), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', s(now - 60))
redis.call('EXPIRE', KEYS[1], 120)
return 1
