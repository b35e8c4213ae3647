-- A drain gives its place up; if another was turned away meanwhile, the account is looked at again at once.
-- KEYS[1] drains, KEYS[2] again: set of accounts, KEYS[3] due, KEYS[4] processed: hash account -> Unix time (s),
-- KEYS[5] latency: hash account -> s. ARGV: account, drain, nudge: the channel that pacers listen to; us until the
-- account is to be drained again, or ''; latency (s), or '' if no message was dealt with.
local account, next_us, latency = ARGV[1], tonumber(ARGV[4]), ARGV[5]
local time = redis.call('TIME')
redis.call('ZREM', KEYS[1], ARGV[2])
if latency ~= '' then
  redis.call('HSET', KEYS[4], account, time[1] .. '.' .. string.format('%06d', time[2]))
  redis.call('HSET', KEYS[5], account, latency)
end
if redis.call('SREM', KEYS[2], account) == 1 then next_us = 0 end
if not next_us then return end
local at = string.format('%.0f', time[1] * 1000000 + time[2] + next_us)
if redis.call('ZADD', KEYS[3], 'LT', 'CH', at, account) == 0 then return end
if redis.call('ZRANGE', KEYS[3], 0, 0)[1] == account then redis.call('PUBLISH', ARGV[3], '1') end
