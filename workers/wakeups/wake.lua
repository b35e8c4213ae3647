-- Have an account drained, unless that is to happen earlier anyway.
-- KEYS[1] due: sorted set account -> when (us), KEYS[2] nudge: list a pacer sleeps on. ARGV: account, delay_us.
local time = redis.call('TIME')
local at = string.format('%.0f', time[1] * 1000000 + time[2] + ARGV[2])
if redis.call('ZADD', KEYS[1], 'LT', 'CH', at, ARGV[1]) == 0 then return 0 end
if redis.call('ZRANGE', KEYS[1], 0, 0)[1] == ARGV[1] and redis.call('LLEN', KEYS[2]) < 2 then
  redis.call('LPUSH', KEYS[2], '1')
end
return 1
