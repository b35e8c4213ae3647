-- Return and refund tokens, and borrow new ones, in one step and by the server's clock.
--
-- KEYS[1]  uses   sorted set: token -> when its use ends (us). For a token on loan, this is the end of the loan. So an
--                 unreturned token holds its place until loan end + period.
-- KEYS[2]  gate   hash: known = how far back (us) every use is in `uses`; epoch = the epoch under which it was filled;
--                 cooldown = closed until (us)
-- KEYS[3]  filled hash, as in origin.lua. Without it, the key has no books and no epoch.
-- ARGV     lease_us, want, grant id, n limits, {count, period_us}*, n refunded, token*, n returned, {token, ago_us}*
--          lease_us: applies to the new and to the returned tokens. ago_us: the least time since the end of the use
--          when this call was sent. Network delay only makes the end seem later than it was.
-- Returns  {granted, wait_us, free_us, left, overshoot, server, epoch, given}. The tokens are named <grant id>.1 to
--          <grant id>.<granted>.
--          granted = -1: the past is not known for the whole longest period (data lost, filled under another epoch or by
--          another server, or a limit is longer than before). No token is given out until it has been rebuilt.
--          wait_us: until the next token, 0 if one is free now. Exact, or an upper bound if it depends on an open loan.
--          free_us: how long the last granted token had been free, -1 if longer than known.
--          left: how many more tokens are free.
--          server, epoch, given: where the tokens come from, and the number of this grant on this server.
--          overshoot: how many uses beyond a limit the returned tokens add. 0 unless a use ended after its loan.
--
-- A use that ended at s holds its place in a limit of period p while s > now - p. Example, 2 per 10 s: uses ended at 1
-- and 4. At 10.9 both count and no token is free. At 11.0 the first no longer counts and one token is free.
--
-- Example of an overshoot, 1 per 10 s: a loan ends at 5 and is not returned, so its token is free at 15, and another
-- caller borrows it. Then the first use is returned with an end of 17. Its request may have been on its way until 17, so
-- there may be two uses in 10 s. If no other caller had borrowed the token, there would be one use and no overshoot. An
-- end of 4 that is returned at 17 is no overshoot either.
--
-- Times are passed to commands as numbers, which the server formats exactly. Joined to a string, they would lose digits.
-- Ends are whole microseconds, so "later than t" is "t + 1 or later".
local uses, gate, filled = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local at = 0
local function arg() at = at + 1; return ARGV[at] end
local lease_us, want, grant = tonumber(arg()), tonumber(arg()), arg()
local limits, longest = {}, 0
for i = 1, tonumber(arg()) do
  limits[i] = {count = tonumber(arg()), period = tonumber(arg())}
  longest = math.max(longest, limits[i].period)
end
-- How many tokens are free by the tightest limit; negative if uses exceed it.
local function free_now()
  local free = math.huge
  for _, limit in ipairs(limits) do
    free = math.min(free, limit.count - redis.call('ZCOUNT', uses, now - limit.period + 1, '+inf'))
  end
  return free
end
-- The expiry is only ever extended, so that a short loan does not end a longer one. It is extended by half as much
-- again, so that not every call extends it.
local function keep_for(span_us)
  local ms = math.ceil(span_us / 1000) + 1000
  if redis.call('PTTL', uses) < ms then redis.call('PEXPIRE', uses, math.floor(1.5 * ms)) end
end

for _ = 1, tonumber(arg()) do redis.call('ZREM', uses, arg()) end
local returned, late = tonumber(arg()), {}
-- XX: an unknown token was lost with the data; the rebuild restores its use from the books.
-- LT: a token returned in time ends its loan earlier. It has held its place all the time, so it exceeds no limit.
for _ = 1, returned do
  local token, ago = arg(), tonumber(arg())
  local ended = now - ago
  if ago > 0 then  -- a use never ends before it begins, even if a clock has jumped
    local loan_end = redis.call('ZSCORE', uses, token)
    if loan_end then ended = math.max(ended, loan_end - lease_us) end
  end
  if redis.call('ZADD', uses, 'XX', 'LT', 'CH', ended, token) == 0 then late[#late + 1] = {token, ended} end
end
local overshoot = 0
if #late > 0 then
  local before = free_now()
  for _, use in ipairs(late) do redis.call('ZADD', uses, 'XX', use[2], use[1]) end
  overshoot = math.max(0, -free_now()) - math.max(0, -before)
end
if want == 0 then
  if returned > 0 then keep_for(2 * longest) end
  return {0, 0, -1, 0, overshoot}
end

local state = redis.call('HMGET', gate, 'known', 'cooldown', 'epoch')
local known = tonumber(state[1] or '')  -- nil also during a rebuild, when it is a nonce
local epoch, server, given = '', '', '0'
if filled then
  local under = redis.call('HMGET', filled, 'epoch', 'server', 'void')
  epoch, server = state[3], this_server()
  if not epoch or epoch ~= under[1] or server ~= under[2] or epoch == under[3] then known = nil end
end
if not known or known < longest then
  if returned > 0 then keep_for(2 * longest) end
  return {-1, 0, -1, 0, overshoot}
end
-- Uses are kept for as long as they count as known (at most two periods), in case the limits become longer.
local kept = math.min(known, 2 * longest)

local free, cooldown = free_now(), tonumber(state[2] or 0)
if cooldown > now then free = 0 end
local granted = math.max(0, math.min(want, free))

-- The g-th token of a limit is free when its (count - g + 1)-th latest use is one period old.
local function free_at(g)
  local at = -1
  for _, limit in ipairs(limits) do
    local rank = limit.count - g + 1
    local use = redis.call('ZRANGE', uses, -rank, -rank, 'WITHSCORES')
    if use[2] then at = math.max(at, tonumber(use[2]) + limit.period) end
  end
  return math.max(at, cooldown)
end

local free_us, wait_us = -1, 0
if granted > 0 then
  -- Uses stay for a second period after they stop counting: their ends show how long their tokens have been free.
  redis.call('ZREMRANGEBYSCORE', uses, '-inf', now - 2 * longest)
  if known > 2 * longest then redis.call('HSET', gate, 'known', 2 * longest) end
  local since = free_at(granted)
  if since > 0 then free_us = math.max(0, now - since) end
  -- One by one, because unpack() fails for thousands of arguments.
  for i = 1, granted do redis.call('ZADD', uses, now + lease_us, grant .. '.' .. i) end
  if filled then given = string.format('%.0f', redis.call('HINCRBY', filled, 'given', 1)) end
end
local left = math.max(0, free - granted)
if left == 0 then wait_us = math.max(0, free_at(1) - now) end
if granted > 0 then keep_for(lease_us + kept) elseif returned > 0 then keep_for(kept) end
return {granted, wait_us, free_us, left, overshoot, server, epoch, given}
