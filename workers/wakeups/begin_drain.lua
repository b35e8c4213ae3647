-- A drain takes (or, with most = -1, renews) its place. KEYS[1] published, KEYS[2] drains: sorted set drain -> end of
-- its lease (us), KEYS[3] again: set of accounts, KEYS[4] publications: counts them, KEYS[5] begun: hash account -> the
-- latest publication when a drain of it last began. ARGV: account, drain, most, lease_us, publication that this drain
-- comes from or ''.
-- Returns 1, or 0 if there is no place: then it is noted, and who gives a place up has the account looked at again, so
-- that nothing is overlooked that came in during somebody's last step. Also 0 for a stale copy: another drain of the
-- account has begun since this one was published, and has seen whatever it was published for.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function us(number) return string.format('%.0f', number) end
local most = tonumber(ARGV[3])
if most >= 0 then
  local publication = tonumber(ARGV[5])
  if publication and tonumber(redis.call('HGET', KEYS[5], ARGV[1]) or 0) >= publication then return 0 end
  redis.call('HSET', KEYS[5], ARGV[1], redis.call('GET', KEYS[4]) or 0)
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
