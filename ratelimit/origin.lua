-- Return where tokens on this server come from.
-- KEYS[1]  filled  hash: epoch, server = the epoch and server under which this data was filled; given = grants so far;
--                  void = an epoch whose tokens were refused
-- KEYS[2]  known   the epoch of which all keys have been checked
-- Returns  {this server, epoch ('' if another server filled the data), grants, 1 if no loss is known, 1 if the epoch is
--          void}
local filled = redis.call('HMGET', KEYS[1], 'epoch', 'server', 'given', 'void')
local server = this_server()
local epoch = filled[2] == server and filled[1] or ''
local void = epoch ~= '' and filled[4] == epoch
local known = epoch ~= '' and not void and redis.call('GET', KEYS[2]) == epoch
return {server, epoch, filled[3] or '0', known and 1 or 0, void and 1 or 0}
