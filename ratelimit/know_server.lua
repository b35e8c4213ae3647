-- Is this the server whose data we filled? A restarted or promoted server may hold an older copy, in which tokens that
-- were borrowed since look free: then every gate is forgotten, so that it is rebuilt before it gives out a token.
-- KEYS[1] the run id we last saw here, KEYS[2] set while no data is known to be lost; ARGV[1] this server's run id; ARGV[2] pattern of all gates.
-- Returns 1 if gates were forgotten. Runs once per connection; the scan only after a change of server.
if redis.call('GET', KEYS[1]) == ARGV[1] then return 0 end
local cursor = '0'
repeat
  local page = redis.call('SCAN', cursor, 'MATCH', ARGV[2], 'COUNT', 1000)
  cursor = page[1]
  for _, gate in ipairs(page[2]) do redis.call('HDEL', gate, 'known') end
until cursor == '0'
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[1], ARGV[1])
return 1
