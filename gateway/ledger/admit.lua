-- Charges every quota, spends the nonce and records the intent, or does nothing. Times: integer microseconds of Redis' clock.
-- KEYS: epoch of the keys, active slot, audit stream, open intents, nonce, then one quota each.
-- ARGV: epoch and slot the call was decided by (slot '' for either), record id, what stays open, record, milliseconds the
-- nonce is kept (0: there is none), then interval and tolerance of each quota.
-- Returns {status, now, time of each quota}: 'admitted' with the new times, 'denied' with the old; 'replayed';
-- {'outdated', epoch, slot}.
local QUOTA, FIGURE = 6, 7
local epoch = tonumber(redis.call('GET', KEYS[1]) or 0)
local slot = redis.call('GET', KEYS[2]) or 'primary'
if epoch > tonumber(ARGV[1]) or (ARGV[2] ~= '' and ARGV[2] ~= slot) then
  return {'outdated', string.format('%.0f', epoch), slot}
end
local nonce = ARGV[6] ~= '0' and KEYS[5]
if nonce and redis.call('EXISTS', nonce) == 1 then return {'replayed'} end
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local times, status = {}, 'admitted'
for i = QUOTA, #KEYS do
  local at_figure = FIGURE + 2 * (i - QUOTA)
  local interval, tolerance = tonumber(ARGV[at_figure]), tonumber(ARGV[at_figure + 1])
  local at = tonumber(redis.call('GET', KEYS[i]) or now)
  local latest = now + tolerance + interval
  if at > latest then
    -- Stored under an earlier, larger limit. Kept cut down, or it would refuse until its own time had come.
    at = latest
    redis.call('SET', KEYS[i], string.format('%.0f', at), 'PX', math.ceil((at - now) / 1000))
  end
  at = math.max(at, now)
  if at - now > tolerance then status = 'denied' end
  times[i - QUOTA + 1] = at
end
if status == 'admitted' then
  for i = QUOTA, #KEYS do
    local at = times[i - QUOTA + 1] + tonumber(ARGV[FIGURE + 2 * (i - QUOTA)])
    times[i - QUOTA + 1] = at
    -- %.0f: Lua would write large numbers as 1.7e+15.
    redis.call('SET', KEYS[i], string.format('%.0f', at), 'PX', math.ceil((at - now) / 1000))
  end
  if nonce then redis.call('SET', nonce, '1', 'PX', ARGV[6]) end
  redis.call('XADD', KEYS[3], '*', 'r', ARGV[5])
  redis.call('HSET', KEYS[4], ARGV[3], string.format('%.0f', now) .. ' ' .. ARGV[4])
end
return {status, now, unpack(times)}
