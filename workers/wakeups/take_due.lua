-- Take the accounts that are due. KEYS[1] due, KEYS[2] published: sorted set account -> until when a published drain
-- may still begin (us), KEYS[3] publications: counts them. ARGV: most, published_for_us.
-- An account whose drain is published and has not begun is dropped: that drain will see whatever the wake-up was for.
-- Returns {us until the next wake-up or -1, us by which the latest was late, number of this publication, account*}.
local due, published = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function us(number) return string.format('%.0f', number) end
redis.call('ZREMRANGEBYSCORE', published, '-inf', us(now))
local taken, late = {}, 0
local found = redis.call('ZRANGE', due, '-inf', us(now), 'BYSCORE', 'LIMIT', 0, ARGV[1], 'WITHSCORES')
for i = 1, #found, 2 do
  local account = found[i]
  redis.call('ZREM', due, account)
  if not redis.call('ZSCORE', published, account) then
    redis.call('ZADD', published, us(now + ARGV[2]), account)
    taken[#taken + 1] = account
    late = math.max(late, now - found[i + 1])
  end
end
local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
local next_us = -1
if first[2] then next_us = math.max(0, first[2] - now) end
local publication = 0
if #taken > 0 then publication = redis.call('INCR', KEYS[3]) end
return {us(next_us), us(late), publication, unpack(taken)}
