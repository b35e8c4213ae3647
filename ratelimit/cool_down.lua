-- Close the gate for some time. A cooldown is only ever extended: the later of two ends applies.
-- KEYS[1] gate. ARGV[1] how long (us). Returns how long the gate is closed from now on (us).
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local until_us = math.max(now + ARGV[1], tonumber(redis.call('HGET', KEYS[1], 'cooldown') or 0))
redis.call('HSET', KEYS[1], 'cooldown', string.format('%.0f', until_us))
return string.format('%.0f', until_us - now)
