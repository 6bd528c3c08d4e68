-- Begins every script that records: appends one record to a stream, once, and only behind the one before it of its writer.
-- `tips` is a hash: writer -> 'seq hash'. `sent` says how: 'first' time, so that its number must be new; 'again', so that it
-- may stand there already; 'resumed': the records before it are sealed or lost, whatever this stream knows.
-- Returns nil and the number of the newest record where this one stands in the stream now, {'gap', last} where one before it
-- is missing (last: the number of the newest that is there, -1: none), {'fork', last} where another stands in its place.
local function append(tips, stream, writer, seq, prev, hash, sent, record)
  local tip, last, named = redis.call('HGET', tips, writer), -1, ''
  if tip then
    local number, digest = string.match(tip, '^(%d+) (%x+)$')
    last, named = tonumber(number or -1), digest or ''
  end
  seq = tonumber(seq)
  if seq <= last then
    if sent == 'first' or (seq == last and hash ~= named) then return {'fork', last} end
    return nil, last
  end
  if sent ~= 'resumed' or seq == last + 1 then
    if seq > last + 1 then return {'gap', last} end
    if prev ~= named then return {'fork', last} end
  end
  -- In this order: of a script that was cut short on disk, a record may stand twice, but none is thought to be there.
  redis.call('XADD', stream, '*', 'r', record)
  redis.call('HSET', tips, writer, string.format('%.0f %s', seq, hash))
  return nil, seq
end

-- The same for the record that every such script is called with: KEYS: tips, audit stream. ARGV: writer, how it is sent, seq,
-- prev, hash, record, its id.
local function append_first()
  return append(KEYS[1], KEYS[2], ARGV[1], ARGV[3], ARGV[4], ARGV[5], ARGV[2], ARGV[6])
end
