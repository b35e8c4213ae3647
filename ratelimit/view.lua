-- Look without touching. KEYS[1] uses, KEYS[2] gate; ARGV[1] longest period (us).
-- Returns {now_us, known as far back as (us, or what is no number), cooldown_us, end of use (us)*}, oldest first.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local state = redis.call('HMGET', KEYS[2], 'known', 'cooldown')
local seen = {string.format('%.0f', now), state[1] or '', state[2] or '0'}
local uses = redis.call('ZRANGE', KEYS[1], string.format('(%.0f', now - ARGV[1]), '+inf', 'BYSCORE', 'WITHSCORES')
for i = 2, #uses, 2 do seen[#seen + 1] = string.format('%.0f', uses[i]) end
return seen
