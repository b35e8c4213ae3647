-- Mark a gate whose past is lost as being rebuilt. KEYS[1] gate; ARGV: a nonce, beginning with "?", and how far back
-- its past must be known (us).
-- Returns the nonce to finish with (another rebuilder's, if it was first), or "" if nothing is lost.
-- The nonce is what makes a slow rebuilder harmless: should the data be lost again before it finishes, the nonce is
-- gone too, and its outdated picture is refused.
local known = redis.call('HGET', KEYS[1], 'known')
if known and tonumber(known) and tonumber(known) >= tonumber(ARGV[2]) then return '' end
if known and not tonumber(known) then return known end
redis.call('HSET', KEYS[1], 'known', ARGV[1])
return ARGV[1]
