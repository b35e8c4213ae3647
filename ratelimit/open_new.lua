-- Open the gate of a new key that has no past.
-- KEYS[1] gate, KEYS[2] filled. ARGV[1] how far back the past is known (us).
-- Returns 1. Returns 0 if the gate exists, or if another server filled this data: then a rebuild opens the gate.
local filled = redis.call('HMGET', KEYS[2], 'epoch', 'server')
if not filled[1] or filled[2] ~= this_server() then return 0 end
if redis.call('HSETNX', KEYS[1], 'known', ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'epoch', filled[1])
return 1
