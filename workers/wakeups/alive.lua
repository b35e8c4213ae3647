-- How many processes have said lately that they live. KEYS[1] alive: as in beat.lua.
local time = redis.call('TIME')
return redis.call('ZCOUNT', KEYS[1], string.format('%.6f', time[1] + time[2] / 1000000), '+inf')
