-- A drain takes (or, with most = -1, renews) its place. KEYS[1] published, KEYS[2] drains: sorted set drain -> end of
-- its lease (us), KEYS[3] again: set of accounts. ARGV: account, drain, most, lease_us.
-- Returns 1, or 0 if there is no place: then it is noted, and who gives a place up has the account looked at again, so
-- that nothing is overlooked that came in during somebody's last step.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function us(number) return string.format('%.0f', number) end
local most = tonumber(ARGV[3])
if most >= 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', us(now))
  if redis.call('ZCARD', KEYS[2]) >= most then
    redis.call('SADD', KEYS[3], ARGV[1])
    return 0
  end
end
redis.call('ZADD', KEYS[2], us(now + ARGV[4]), ARGV[2])
redis.call('PEXPIRE', KEYS[2], us(ARGV[4] / 1000 + 1000))
return 1
