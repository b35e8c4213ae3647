-- Read the state of a key without changing it.
-- KEYS[1] uses, KEYS[2] gate, KEYS[3] filled as in origin.lua. ARGV[1] longest period (us).
-- Returns {now_us, how far back the past is known (us; not a number if unknown), cooldown_us, n, token*n,
-- end of use (us)*}.
-- Ends are in order, oldest first. The tokens belong to the last n ends: on loan, or ended within the last 250 ms.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local state = redis.call('HMGET', KEYS[2], 'known', 'cooldown', 'epoch')
local filled = redis.call('HMGET', KEYS[3], 'epoch', 'server', 'void')
local trusted = state[3] and state[3] == filled[1] and filled[2] == this_server() and state[3] ~= filled[3]
local seen = {string.format('%.0f', now), trusted and state[1] or '', state[2] or '0'}
local uses = redis.call('ZRANGE', KEYS[1], string.format('(%.0f', now - ARGV[1]), '+inf', 'BYSCORE', 'WITHSCORES')
local recent = 0
seen[4] = 0
for i = 1, #uses, 2 do
  if tonumber(uses[i + 1]) > now - 250000 then
    recent = recent + 1
    seen[4 + recent] = uses[i]
  end
end
seen[4] = recent
for i = 2, #uses, 2 do seen[#seen + 1] = string.format('%.0f', uses[i]) end
return seen
