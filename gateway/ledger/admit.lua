-- Records the intent; then charges every limit and spends the nonce, or neither. Times: integer microseconds of Redis' clock.
-- KEYS: tips, audit stream, epoch of the keys, active slot, version of the limits, open intents, nonce, then each limit,
-- followed by where it is kept which of the call's numbers were touched; last the claim of the idempotency key, where there is one.
-- ARGV: writer, how the record is sent, seq, prev, hash, record, its id, epoch, slot and version the call was decided by (slot
-- '', version '*' for any), until when that version holds (0: for good), what stays open, milliseconds the nonce is kept (0:
-- there is none), figures of each limit in MessagePack: shadow (0, 1), interval, tolerance, milliseconds a number counts as
-- touched, how many there are to look at; an interval of 0 counts calls under way: their most in place of the tolerance, then
-- milliseconds a place is kept. Of an idempotency key: the call's fingerprint, the claim's owner ('': this intent), whether a
-- call of which nobody knows how it ended may be made again (0, 1), milliseconds a claim is kept, microseconds that no call lasts.
-- Returns {status, now, figure of each limit}: 'admitted' with what it became, 'denied' with what it was, a time or the
-- calls under way, negative where the limit refused; 'replayed'; {'outdated', epoch, slot, version}; {'repeated', how the call of
-- that key stands, its intent, its answer}; what append.lua says.
-- A claim is kept as `fingerprint owner intent instant answer`: by its owner a call knows its own, by the intent of its last try
-- whether it is still being made; the answer is empty until there is one.
local FIRST = 8
local behind = append_first()
if behind then return behind end
local known = redis.call('MGET', KEYS[3], KEYS[4], KEYS[5])
local epoch, slot, version = tonumber(known[1] or 0), known[2] or 'primary', known[3] or ''
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
-- Said as a version nobody has, so that the asker reads again what holds now.
if ARGV[11] ~= '0' and now >= tonumber(ARGV[11]) then version = '?' end
if epoch > tonumber(ARGV[8]) or (ARGV[9] ~= '' and ARGV[9] ~= slot) or (ARGV[10] ~= '*' and ARGV[10] ~= version) then
  return {'outdated', string.format('%.0f', epoch), slot, version}
end
local nonce = ARGV[13] ~= '0' and KEYS[7]
if nonce and redis.call('EXISTS', nonce) == 1 then return {'replayed'} end
local claim = ARGV[15] and KEYS[#KEYS]
if claim then
  local of, owner, intent, at, answer = string.match(redis.call('GET', claim) or '', '^(%x+) (%S+) (%S+) (%d+) (.*)$')
  if of and owner ~= ARGV[16] then
    if of ~= ARGV[15] then return {'repeated', 'mismatch', intent, ''} end
    if answer ~= '' then
      if nonce then redis.call('SET', nonce, '1', 'PX', ARGV[13]) end
      return {'repeated', 'answered', intent, answer}
    end
    -- An intent that a process left open when it died is closed by its heir; where there is none, by the time.
    if redis.call('HEXISTS', KEYS[6], intent) == 1 and now - at < tonumber(ARGV[19]) then
      return {'repeated', 'running', intent, ''}
    end
    if ARGV[17] == '0' then return {'repeated', 'unknown', intent, ''} end
  end
end
local limits, status, key = {cmsgpack.unpack(ARGV[14])}, 'admitted', FIRST
local function keep(at_key, at, interval, burst)
  -- %.0f: Lua would write large numbers as 1.7e+15.
  redis.call('SET', KEYS[at_key], string.format('%.0f %.0f %.0f', at, interval, burst), 'PX', math.ceil((at - now) / 1000))
end
local function kept(at_key, interval)
  local at, before, burst = string.match(redis.call('GET', KEYS[at_key]) or '', '^(%d+) ([1-9]%d*) ([1-9]%d*)$')
  if not at then return now end
  at, before, burst = tonumber(at), tonumber(before), tonumber(burst)
  -- Further ahead it cannot have been stored, unless by a clock that was ahead of this one.
  local found, most = at, now + burst * before
  if at > most then at = most end
  -- Of a rate that was changed meanwhile, the units used stay used: not the time they took to grow back.
  if before ~= interval and at > now then at = now + math.ceil((at - now) * interval / before) end
  -- Kept at once: until a call passes it would go on growing back at the old rate, or not at all.
  if at ~= found then keep(at_key, at, interval, burst) end
  return at
end
for _, limit in ipairs(limits) do
  local shadow, interval, tolerance, _, numbers = unpack(limit)
  limit.key, limit.units = key, 1
  if interval == 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[key], '-inf', now)
    limit.figure = redis.call('ZCARD', KEYS[key])
    limit.refuses = limit.figure >= tolerance
  else
    if numbers > 0 then limit.units = numbers - redis.call('EXISTS', unpack(KEYS, key + 1, key + numbers)) end
    -- What was used under a larger burst stays used under this one: a lowered limit refuses until it has grown back.
    limit.figure = math.max(kept(key, interval), now)
    local last = limit.figure + (limit.units - 1) * interval
    limit.refuses = limit.units > 0 and last - now > tolerance
    if limit.refuses then limit.figure = last end
  end
  if limit.refuses and shadow == 0 then status = 'denied' end
  key = key + 1 + numbers
end
local figures = {}
for i, limit in ipairs(limits) do
  local _, interval, tolerance, life, numbers = unpack(limit)
  if status == 'admitted' and not limit.refuses then
    if interval == 0 then
      limit.figure = limit.figure + 1
      redis.call('ZADD', KEYS[limit.key], string.format('%.0f', now + life * 1000), ARGV[7])
      redis.call('PEXPIRE', KEYS[limit.key], life)
    elseif limit.units > 0 then
      limit.figure = limit.figure + limit.units * interval
      keep(limit.key, limit.figure, interval, tolerance / interval + 1)
      for touched = limit.key + 1, limit.key + numbers do redis.call('SET', KEYS[touched], '1', 'PX', life, 'NX') end
    end
  end
  figures[i] = limit.refuses and -limit.figure or limit.figure
end
if status == 'admitted' then
  if nonce then redis.call('SET', nonce, '1', 'PX', ARGV[13]) end
  if claim then
    local owner = ARGV[16] ~= '' and ARGV[16] or ARGV[7]
    redis.call('SET', claim, string.format('%s %s %s %.0f ', ARGV[15], owner, ARGV[7], now), 'PX', ARGV[18])
  end
  redis.call('HSET', KEYS[6], ARGV[7], string.format('%.0f', now) .. ' ' .. ARGV[12])
end
return {status, now, unpack(figures)}
