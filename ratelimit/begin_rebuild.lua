-- Mark a gate whose past is lost as being rebuilt. KEYS[1] uses, KEYS[2] gate, KEYS[3] filled; ARGV: the epoch to fill it
-- under, a random word, and how far back its past must be known (us).
-- Returns the nonce to finish with (another rebuilder's, if it was first), or "" if nothing is lost.
-- The nonce is what makes a slow rebuilder harmless: should the data be lost again before it finishes, the nonce is
-- gone too, and its outdated picture is refused.
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
