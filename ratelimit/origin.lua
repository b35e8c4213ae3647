-- Where tokens come from here. KEYS[1] filled: hash epoch, server = which epoch and server this data was filled under,
-- given = grants so far, void = an epoch whose tokens were refused; KEYS[2] known: the epoch whose keys have all been
-- looked through.
-- Returns {this server, epoch or '' if the data is another server's, grants, 1 if nothing is known to be lost, 1 if the
-- epoch is void}.
local filled = redis.call('HMGET', KEYS[1], 'epoch', 'server', 'given', 'void')
local server = this_server()
local epoch = filled[2] == server and filled[1] or ''
local void = epoch ~= '' and filled[4] == epoch
local known = epoch ~= '' and not void and redis.call('GET', KEYS[2]) == epoch
return {server, epoch, filled[3] or '0', known and 1 or 0, void and 1 or 0}
