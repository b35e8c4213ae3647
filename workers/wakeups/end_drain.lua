-- A drain gives its place up; if another was turned away meanwhile, the account is looked at again at once.
-- KEYS[1] drains, KEYS[2] again: set of accounts, KEYS[3] due, KEYS[4] nudge. ARGV: account, drain.
redis.call('ZREM', KEYS[1], ARGV[2])
if redis.call('SREM', KEYS[2], ARGV[1]) == 0 then return 0 end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[3], 'LT', string.format('%.0f', time[1] * 1000000 + time[2]), ARGV[1])
if redis.call('LLEN', KEYS[4]) < 2 then redis.call('LPUSH', KEYS[4], '1') end
return 1
