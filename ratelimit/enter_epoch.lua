-- Begin an epoch on this server. This closes every gate that was filled under another epoch.
-- KEYS as in origin.lua. ARGV: epoch, the intended server, the least number of grants so far.
-- Returns 1, or 0 if this is not the intended server (the address leads elsewhere by now).
local epoch, server = ARGV[1], ARGV[2]
if this_server() ~= server then return 0 end
local filled = redis.call('HMGET', KEYS[1], 'epoch', 'server', 'given')
if filled[1] == epoch and filled[2] == server then return 1 end
-- Data copied from another server has times of that server's clock. begin_rebuild.lua deletes them.
if filled[2] ~= server then redis.call('HSET', KEYS[1], 'moved', epoch) end
local given = math.max(tonumber(filled[3] or 0), tonumber(ARGV[3]))
redis.call('HSET', KEYS[1], 'epoch', epoch, 'server', server, 'given', string.format('%.0f', given))
redis.call('DEL', KEYS[2])
return 1
