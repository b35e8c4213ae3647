-- Have an account drained, unless that is to happen earlier anyway.
-- KEYS[1] due: sorted set account -> when (us). ARGV: account, delay_us, nudge: the channel that pacers listen to.
local time = redis.call('TIME')
local at = string.format('%.0f', time[1] * 1000000 + time[2] + ARGV[2])
if redis.call('ZADD', KEYS[1], 'LT', 'CH', at, ARGV[1]) == 0 then return 0 end
if redis.call('ZRANGE', KEYS[1], 0, 0)[1] == ARGV[1] then redis.call('PUBLISH', ARGV[3], '1') end
return 1
