-- The same job in nginx: key by SHA-256, JSON, numbers, one script for limits and intent, forward, outcome, answer.
local cjson = require "cjson.safe"
local ffi = require "ffi"
ffi.cdef [[
  unsigned char *SHA256(const unsigned char *d, size_t n, unsigned char *md);
  const void *EVP_sha256(void);
  unsigned char *HMAC(const void *md, const void *key, int key_len, const unsigned char *d, size_t n, unsigned char *out, unsigned int *len);
]]
local crypto = ffi.load("crypto.so.3")
local gateway = {}
local out = ffi.new("unsigned char[32]")
local sha

local function hex(text)
  return (text:gsub(".", function(c) return string.format("%02x", c:byte()) end))
end

local function sha256(text)
  crypto.SHA256(text, #text, out)
  return hex(ffi.string(out, 32))
end

local function pseudonym(number)
  crypto.HMAC(crypto.EVP_sha256(), PSEUDONYM_KEY, #PSEUDONYM_KEY, number, #number, out, nil)
  return hex(ffi.string(out, 16))
end

local function e164(text)
  local digits = tostring(text):gsub("[ ()%-%.]", "")
  if digits:sub(1, 1) == "+" then return digits:match("^%+%d+$") end
  if not digits:match("^%d+$") then return nil end
  digits = digits:gsub("^0+", "")
  if #digits == 10 then return "+91" .. digits end
  if #digits == 12 and digits:sub(1, 2) == "91" then return "+" .. digits end
end

local function command(words)
  local parts = { "*", #words, "\r\n" }
  for _, word in ipairs(words) do
    word = tostring(word)
    parts[#parts + 1] = "$" .. #word .. "\r\n" .. word .. "\r\n"
  end
  return table.concat(parts)
end

local function reply(sock)
  local line, err = sock:receive()
  if not line then return nil, err end
  local kind, rest = line:sub(1, 1), line:sub(2)
  if kind == "-" then return nil, rest end
  if kind == ":" then return tonumber(rest) end
  if kind == "$" then
    local size = tonumber(rest)
    if size < 0 then return false end
    local data = sock:receive(size)
    sock:receive(2)
    return data
  end
  if kind == "*" then
    local list = {}
    for i = 1, tonumber(rest) do list[i] = reply(sock) end
    return list
  end
  return rest
end

local function redis(words)
  local sock = ngx.socket.tcp()
  sock:settimeout(1000)
  local ok, err = sock:connect(REDIS)
  if not ok then return nil, err end
  sock:send(command(words))
  local answer, fault = reply(sock)
  sock:setkeepalive(60000, 512)
  return answer, fault
end

local function say(status, body)
  ngx.status = status
  ngx.header["Content-Type"] = "application/json; charset=utf-8"
  local text = cjson.encode(body)
  ngx.header["Content-Length"] = #text
  ngx.print(text)
end

local function refuse(status, slug, message)
  return say(status, { status = "error", error = slug, message = message, origin = "gateway", request_id = ngx.var.request_id })
end

function gateway.unset()
  local key = (ngx.var.http_authorization or ""):match("^Bearer (.+)$")
  local service = key and KEY_DIGESTS[sha256(key)]
  if not service then return refuse(401, "credential_unknown", "This key is not known here.") end
  ngx.req.read_body()
  local body = cjson.decode(ngx.req.get_body_data() or "")
  if type(body) ~= "table" then return refuse(400, "body_malformed", "The body is not JSON.") end
  local numbers, seen = {}, false
  for _, field in ipairs { "m1", "m2", "mask" } do
    if body[field] then
      numbers[field] = e164(body[field])
      if not numbers[field] then return refuse(400, "number_invalid", field) end
      seen = true
    end
  end
  if not seen or (numbers.m1 and numbers.m1 == numbers.m2) then return refuse(400, "number_missing", "Send a number.") end
  local request_id = ngx.var.request_id
  local record = { stage = "intent", request_id = request_id, service = service, at = ngx.now(), account = "bench", operation = "end" }
  local keys = { "gw:{n}:tips", "gw:{n}:audit", "gw:{n}:epoch", "gw:{n}:slot", "gw:{n}:limits:version", "gw:{n}:open", "gw:{n}:nonce" }
  keys[#keys + 1] = "gw:{n}:limit:caller:" .. service
  for field, number in pairs(numbers) do
    record[field] = pseudonym(number)
    record[field .. "_last2"] = number:sub(-2)
    keys[#keys + 1] = "gw:{n}:limit:number:" .. record[field]
  end
  keys[#keys + 1] = "gw:{n}:limit:account"
  sha = sha or hex(ngx.sha1_bin(SCRIPT))
  local words = { "EVALSHA", sha, #keys }
  for _, name in ipairs(keys) do words[#words + 1] = name end
  -- Each record is the first of a writer of its own: connections from a pool keep no order, which a chain needs.
  local encoded = cjson.encode(record)
  local link = { request_id, "first", "0", "", sha256("\0" .. encoded), encoded, request_id }
  for _, word in ipairs(link) do words[#words + 1] = word end
  -- Epoch, slot, version of the limits and its end, what stays open, no nonce; figures of each limit: one unit a
  -- microsecond, 999,999 at once.
  for _, word in ipairs { "0", "primary", "", "0", service .. ".1", "0" } do words[#words + 1] = word end
  words[#words + 1] = ("\x95\0\1\xce\0\x0f\x42\x3f\0\0"):rep(#keys - 7)
  local verdict, fault = redis(words)
  if not verdict and fault and fault:find("NOSCRIPT", 1, true) then
    words[1], words[2] = "EVAL", SCRIPT
    verdict, fault = redis(words)
  end
  if not verdict then return refuse(503, "ledger_unavailable", fault) end
  if verdict[1] ~= "admitted" then return refuse(429, "quota_exceeded", "Try again later.") end
  body.ssid, body.userId, body.token = SSID, nil, nil
  local answer = ngx.location.capture("/vendor", { method = ngx.HTTP_POST, body = cjson.encode(body) })
  local said = cjson.decode(answer.body or "")
  record.stage, record.status, record.ms = "outcome", answer.status, ngx.now() - record.at
  redis { "XADD", "gw:{n}:audit", "*", "r", cjson.encode(record) }
  redis { "HDEL", "gw:{n}:open", request_id }
  if answer.status ~= 200 or not said or said.status ~= "success" then return refuse(502, "vendor_failed", "The vendor failed.") end
  said.request_id, said.operation = request_id, "end"
  ngx.header["RateLimit"] = '"caller";r=' .. verdict[3]
  say(200, said)
end

return gateway
