-- From now on this data is to be filled under an epoch; every gate of another one is closed by that.
-- KEYS as in origin.lua. ARGV: epoch, the server that it is meant for, how many grants there have been at least.
-- Returns 1, or 0 if this is another server: the address leads elsewhere by now.
local epoch, server = ARGV[1], ARGV[2]
if this_server() ~= server then return 0 end
local filled = redis.call('HMGET', KEYS[1], 'epoch', 'server', 'given')
if filled[1] == epoch and filled[2] == server then return 1 end
-- Times in a copy of another server's data are by that server's clock; begin_rebuild.lua drops them.
if filled[2] ~= server then redis.call('HSET', KEYS[1], 'moved', epoch) end
local given = math.max(tonumber(filled[3] or 0), tonumber(ARGV[3]))
redis.call('HSET', KEYS[1], 'epoch', epoch, 'server', server, 'given', string.format('%.0f', given))
redis.call('DEL', KEYS[2])
return 1
