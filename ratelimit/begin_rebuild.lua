-- Mark a gate whose past is lost as being rebuilt. KEYS[1] gate; ARGV[1] a nonce, beginning with "?".
-- Returns the nonce to finish with (another rebuilder's, if it was first), or "" if nothing is lost.
-- The nonce is what makes a slow rebuilder harmless: should the data be lost again before it finishes, the nonce is
-- gone too, and its outdated picture is refused.
local known = redis.call('HGET', KEYS[1], 'known')
if known == '1' then return '' end
if known then return known end
redis.call('HSET', KEYS[1], 'known', ARGV[1])
return ARGV[1]
