-- Give tokens back and borrow new ones, in one step, by the server's clock.
--
-- KEYS[1]  uses   sorted set: token -> when its use ends (us). For a token out on loan that is the end of the
--                 loan, which is why an unreturned one holds its place until loan end + period.
-- KEYS[2]  gate   hash: known = how far back (us) every use is in `uses`, epoch = under which it was filled;
--                 cooldown = closed until (us)
-- KEYS[3]  filled hash, as in origin.lua. Not given: no books are kept of this key's uses, and no epoch is asked for.
-- ARGV     lease_us, want, grant id, n limits, {count, period_us}*, n refunded, token*, n returned, {token, ago_us}*
--          lease_us: of those returned too. ago_us: for how long its use had been over, at least, when this was sent.
--          That it took this a while to get here only makes the end later than it was.
-- Returns  {granted, wait_us, free_us, left, overshoot, server, epoch, given}: tokens are named <grant id>.1 to
--          <grant id>.<granted>.
--          granted = -1: the past is not known as far back as the longest period (data lost, filled under another epoch
--          or by another server, or a longer limit than before); nothing may be used until it has been rebuilt.
--          wait_us: until the next token, 0 if one is free now. Exact unless it hangs on a loan still out, then a bound.
--          free_us: how long the last of the granted ones had been free, -1 if for longer than anybody knows.
--          left: how many are free besides.
--          server, epoch, given: where the tokens come from, and the number of this grant on this server.
--          overshoot: by how many uses a limit is exceeded that was not before, because of what is returned here; 0
--          but for a use that ended after its loan.
--
-- A use that ended at s holds its place in a limit of period p while s > now - p. Example, 2 per 10 s: uses ended at 1
-- and 4; at 10.9 both count, no token; at 11.0 the first one does not any more, and one token is free.
--
-- Example of an overshoot, 1 per 10 s: a loan that ends at 5, not returned, frees its token at 15, and somebody borrows
-- it. Should an answer of 17 be returned all the same, that request may have been on its way until then: two uses where
-- one may be. Had nobody borrowed the token, it would be one, and no overshoot; nor is one an answer of 4, returned at 17.
--
-- Times go to commands as numbers, which the server writes out exactly; joined to a string they would lose digits. Ends
-- are whole microseconds, so "later than t" is "t + 1 or later".
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
-- By the tightest limit; negative for uses beyond it.
local function free_now()
  local free = math.huge
  for _, limit in ipairs(limits) do
    free = math.min(free, limit.count - redis.call('ZCOUNT', uses, now - limit.period + 1, '+inf'))
  end
  return free
end
-- Only ever extended, a short loan must not take a longer one with it; and far enough not to be extended every time.
local function keep_for(span_us)
  local ms = math.ceil(span_us / 1000) + 1000
  if redis.call('PTTL', uses) < ms then redis.call('PEXPIRE', uses, math.floor(1.5 * ms)) end
end

for _ = 1, tonumber(arg()) do redis.call('ZREM', uses, arg()) end
local returned, late = tonumber(arg()), {}
-- XX: a token that is not known here was lost with the data; the rebuild brings its use back from the books.
-- LT: one that comes back in time ends its loan earlier. It has held its place all the while, and exceeds nothing.
for _ = 1, returned do
  local token, ago = arg(), tonumber(arg())
  local ended = now - ago
  if ago > 0 then  -- nothing ends before it begins, whatever became of the clocks meanwhile
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
local known = tonumber(state[1] or '')  -- nil also for the nonce of a rebuild under way
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
-- Uses live for as long as they are said to be known, should the limits be made longer: up to two periods.
local kept = math.min(known, 2 * longest)

local free, cooldown = free_now(), tonumber(state[2] or 0)
if cooldown > now then free = 0 end
local granted = math.max(0, math.min(want, free))

-- A limit has its g-th token free once its (count - g + 1)-th latest use is a period old.
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
  -- Uses that hold no place any more stay for another period: when they ended tells for how long their tokens were free.
  redis.call('ZREMRANGEBYSCORE', uses, '-inf', now - 2 * longest)
  if known > 2 * longest then redis.call('HSET', gate, 'known', 2 * longest) end
  local since = free_at(granted)
  if since > 0 then free_us = math.max(0, now - since) end
  -- One by one: unpack() gives up at some thousands.
  for i = 1, granted do redis.call('ZADD', uses, now + lease_us, grant .. '.' .. i) end
  if filled then given = string.format('%.0f', redis.call('HINCRBY', filled, 'given', 1)) end
end
local left = math.max(0, free - granted)
if left == 0 then wait_us = math.max(0, free_at(1) - now) end
if granted > 0 then keep_for(lease_us + kept) elseif returned > 0 then keep_for(kept) end
return {granted, wait_us, free_us, left, overshoot, server, epoch, given}
