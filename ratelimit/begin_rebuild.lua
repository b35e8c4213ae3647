-- Mark a gate as being rebuilt if its past is lost.
-- KEYS[1] uses, KEYS[2] gate, KEYS[3] filled.
-- ARGV: the epoch to fill it under, a random word, how far back its past must be known (us).
-- Returns the nonce for finish_rebuild.lua (of another rebuilder if that one was first), or "" if nothing is lost.
-- The nonce makes a slow rebuilder harmless: if the data is lost again before it finishes, the nonce is lost too, and
-- the outdated uses are refused.
local epoch, mine = ARGV[1], '?' .. ARGV[1] .. ':'
local gate = redis.call('HMGET', KEYS[2], 'known', 'epoch')
local known = gate[1]
if gate[2] == epoch and known then
  if tonumber(known) and tonumber(known) >= tonumber(ARGV[3]) then return '' end
  if string.sub(known, 1, #mine) == mine then return known end
end
if gate[2] ~= epoch and redis.call('HGET', KEYS[3], 'moved') == epoch then
  redis.call('DEL', KEYS[1])
  redis.call('HDEL', KEYS[2], 'cooldown')
end
redis.call('HSET', KEYS[2], 'known', mine .. ARGV[2], 'epoch', epoch)
return mine .. ARGV[2]
