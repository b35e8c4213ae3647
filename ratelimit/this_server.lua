-- A function that is put in front of scripts that must know which server they run on.
-- Returns the replication id: a unique name of the server, which changes after a restart and after a time as replica.
-- Returns '' on a replica, and the run id if the server hides its replication id. Takes 3 us.
local function this_server()
  local info = redis.call('INFO', 'replication')
  if not string.find(info, 'role:master', 1, true) then return '' end
  return string.match(info, 'master_replid:(%w+)') or string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
end
