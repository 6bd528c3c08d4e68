-- Charges every quota and records the intent, or does neither. All times are integer microseconds of Redis' clock.
-- KEYS: registry epoch, audit stream, open intents, then one quota each.
-- ARGV: epoch known to the caller, record id, record, then interval and tolerance of each quota.
-- Returns {status, now, time of each quota}: 'admitted' with the new times, 'denied' with the old, 'stale'.
local epoch = redis.call('GET', KEYS[1]) or '0'
if epoch ~= ARGV[1] then return {'stale', epoch} end
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local times, status = {}, 'admitted'
for i = 4, #KEYS do
  local interval, tolerance = tonumber(ARGV[2 * i - 4]), tonumber(ARGV[2 * i - 3])
  local at = tonumber(redis.call('GET', KEYS[i]) or now)
  local latest = now + tolerance + interval
  if at > latest then
    -- Stored under an earlier, larger limit. Kept cut down, or it would refuse until its own time had come.
    at = latest
    redis.call('SET', KEYS[i], string.format('%.0f', at), 'PX', math.ceil((at - now) / 1000))
  end
  at = math.max(at, now)
  if at - now > tolerance then status = 'denied' end
  times[i - 3] = at
end
if status == 'admitted' then
  for i = 4, #KEYS do
    local at = times[i - 3] + tonumber(ARGV[2 * i - 4])
    times[i - 3] = at
    -- %.0f: Lua would write large numbers as 1.7e+15.
    redis.call('SET', KEYS[i], string.format('%.0f', at), 'PX', math.ceil((at - now) / 1000))
  end
  redis.call('XADD', KEYS[2], '*', 'r', ARGV[3])
  redis.call('HSET', KEYS[3], ARGV[2], string.format('%.0f', now))
end
return {status, now, unpack(times)}
