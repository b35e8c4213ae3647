-- Restore the uses of a lost gate and open it. KEYS[1] uses, KEYS[2] gate.
-- ARGV: nonce, cooldown (us from now), keep the uses for (us), how far back the past is known (us),
--       {token, end of use (us from now, negative: in the past)}*
-- Returns 1, or 0 if the gate has another nonce (another rebuilder has finished, or the data was lost again).
if redis.call('HGET', KEYS[2], 'known') ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
-- GT: an older copy of the data and the books may differ about the end of a use. The later end is the safe one.
for i = 5, #ARGV, 2 do
  redis.call('ZADD', KEYS[1], 'GT', string.format('%.0f', now + ARGV[i + 1]), ARGV[i])
end
if #ARGV > 4 then redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ARGV[3] / 1000)) end
local cooldown = math.max(tonumber(redis.call('HGET', KEYS[2], 'cooldown') or 0), now + ARGV[2])
redis.call('HSET', KEYS[2], 'known', ARGV[4], 'cooldown', string.format('%.0f', cooldown))
return 1
