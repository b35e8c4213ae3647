-- Goes in front of scripts that must know which server they run on.
-- Returns a name that no other server has, nor this one after a restart or after it was a replica meanwhile: its
-- replication id. '' while it is a replica. A server that hides the id is known by its run id. Takes 3 us.
local function this_server()
  local info = redis.call('INFO', 'replication')
  if not string.find(info, 'role:master', 1, true) then return '' end
  return string.match(info, 'master_replid:(%w+)') or string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
end
