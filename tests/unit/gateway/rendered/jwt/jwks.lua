-- The public keys of tokens' issuer, and what is signed with one of them. It begins with the keys of the last run
-- (`jwt.map`, `jwt-<n>.pem`) and, where its third argument says every how many seconds, asks the issuer itself at the
-- socket of `listen issuer`. What it cannot read as a whole changes nothing. The rules for keys are those of
-- infra/reading/jwks.py, which reads them for a run.
--
-- HAProxy 2.8 takes a key for jwt_verify from a file, and only at its start; called from Lua, jwt_verify looks for the
-- file at each call, until it has found it once (src/hlua.c, hlua_run_sample_conv; src/jwt.c, jwt_tree_load_cert). The
-- tree in which it keeps them has no lock, so all calls are here: one Lua state for all threads (`lua-load`), and its
-- lock.
local FOLDER, RUN_FOLDER, EVERY_S = ...

local MOST_BYTES, MOST_KEYS, MOST_DEPTH = 262144, 64, 32
-- HAProxy keeps each key until it ends. About 1 KiB each, so an issuer with a new one a day has years.
local MOST_LOADED = 4096
-- Seconds for an answer, whole. One byte a second is no answer: how much is read before the clock is looked at.
local ANSWER_S, BLOCK = 10, 16
local FEWEST_BITS, MOST_BITS = 2048, 8192

local RSA = { 'RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512' }
-- Of each curve: its algorithm, the bytes of a coordinate, its OID (RFC 5480, 2.1.1.1).
local CURVES = {
  ['P-256'] = { 'ES256', 32, '\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07' },
  ['P-384'] = { 'ES384', 48, '\x06\x05\x2b\x81\x04\x00\x22' },
  ['P-521'] = { 'ES512', 66, '\x06\x05\x2b\x81\x04\x00\x23' },
}
local RSA_TYPE = '\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00'
local EC_OID = '\x06\x07\x2a\x86\x48\xce\x3d\x02\x01'

local NULL = {}
local ESCAPES = { b = '\b', f = '\f', n = '\n', r = '\r', t = '\t', ['"'] = '"', ['\\'] = '\\', ['/'] = '/' }

local function refuse(why) error({ why = why }) end
local function no_set() refuse('is no key set, which is {"keys": [...]}') end

-- A JSON text as tables, null as NULL.
local function parsed(text)
  if not utf8.len(text) then no_set() end
  local value

  local function next_at(at, wanted)
    at = text:find('[^ \t\r\n]', at)
    if not at or (wanted and text:sub(at, at) ~= wanted) then no_set() end
    return at
  end

  local function string_from(at)
    local last = at
    while true do
      last = text:find('["\\%c]', last + 1)
      local char = last and text:byte(last)
      if char == 34 then break end
      if char ~= 92 then no_set() end
      last = last + 1
    end
    local whole = text:sub(at + 1, last - 1):gsub('\\(.)(%x?%x?%x?%x?)', function(char, hex)
      if char == 'u' and #hex == 4 then return utf8.char(tonumber(hex, 16)) end
      return (ESCAPES[char] or no_set()) .. hex
    end)
    return whole, last + 1
  end

  -- What stands between two brackets, one after the other with commas between.
  local function all(at, close, take)
    at = next_at(at + 1)
    if text:sub(at, at) == close then return at + 1 end
    while true do
      at = next_at(take(at))
      if text:sub(at, at) == close then return at + 1 end
      at = next_at(next_at(at, ',') + 1)
    end
  end

  function value(at, depth)
    if depth > MOST_DEPTH then refuse('is nested too deeply') end
    local char, found = text:sub(at, at), {}
    if char == '"' then return string_from(at) end
    if char == '{' then
      return found, all(at, '}', function(first)
        local key, after = string_from(next_at(first, '"'))
        found[key], after = value(next_at(next_at(after, ':') + 1), depth + 1)
        return after
      end)
    end
    if char == '[' then
      return found, all(at, ']', function(first)
        local one, after = value(first, depth + 1)
        found[#found + 1] = one
        return after
      end)
    end
    local word = text:match('^[%w.+-]+', at) or ''
    if word == 'null' then return NULL, at + 4 end
    if word == 'true' or word == 'false' then return word == 'true', at + #word end
    return tonumber(word) or no_set(), at + #word
  end

  local found, after = value(next_at(1), 0)
  if text:find('[^ \t\r\n]', after) then no_set() end
  return found
end

local LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/'
local VALUES = { ['-'] = 62, ['_'] = 63 }
for at = 1, 62 do VALUES[LETTERS:sub(at, at)] = at - 1 end

-- The bytes of a number in base64url, without zeros before it.
local function number_of(key, name)
  local text, bytes, bits, kept = key[name], {}, 0, 0
  if type(text) ~= 'string' or not text:find('^[%w_-]+$') or #text % 4 == 1 then
    refuse(key.kid .. ' has no `' .. name .. '` in base64url')
  end
  for char in text:gmatch('.') do
    kept, bits = (kept << 6 | VALUES[char]) & 0x3fff, bits + 6
    if bits >= 8 then
      bits = bits - 8
      bytes[#bytes + 1] = string.char(kept >> bits & 255)
    end
  end
  return (table.concat(bytes):gsub('^\0+', ''))
end

local function pem(bytes)
  local text = bytes:gsub('..?.?', function(three)
    local a, b, c = three:byte(1, 3)
    local all = a << 16 | (b or 0) << 8 | (c or 0)
    local found = ''
    for shift = 18, 0, -6 do
      local at = (all >> shift & 63) + 1
      found = found .. LETTERS:sub(at, at)
    end
    return found:sub(1, #three + 1) .. ('='):rep(3 - #three)
  end)
  return '-----BEGIN PUBLIC KEY-----\n' .. text:gsub(('.'):rep(64), '%0\n'):gsub('\n$', '') .. '\n-----END PUBLIC KEY-----\n'
end

local function der(tag, bytes)
  local size = #bytes
  local length = size < 128 and string.char(size) or size < 256 and string.char(0x81, size)
    or string.char(0x82, size >> 8, size & 255)
  return string.char(tag) .. length .. bytes
end

local function integer(bytes)
  return der(2, (bytes == '' or bytes:byte(1) > 127) and '\0' .. bytes or bytes)
end

-- As X.509 has them (RFC 5280, 4.1.2.7).
local function public(kind, bits) return pem(der(0x30, kind .. der(3, '\0' .. bits))) end

local function rsa(n, e)
  local bits = #n * 8
  for shift = 7, 1, -1 do
    if n ~= '' and n:byte(1) >> shift == 0 then bits = bits - 1 end
  end
  if bits < FEWEST_BITS or bits > MOST_BITS then refuse('has ' .. bits .. ' bits') end
  if #e > 4 or e == '' or e == '\1' or e:byte(-1) % 2 == 0 then refuse('has an exponent that is none') end
  return public(RSA_TYPE, der(0x30, integer(n) .. integer(e)))
end

-- That the point is on its curve OpenSSL looks at.
local function ec(curve, x, y)
  local size = curve[2]
  if #x > size or #y > size then refuse('has a point that is none') end
  local point = '\4' .. ('\0'):rep(size - #x) .. x .. ('\0'):rep(size - #y) .. y
  return public(der(0x30, EC_OID .. curve[3]), point)
end

-- The id, algorithms and PEM of a key; nil for one that is not for signatures.
local function key_of(key)
  if type(key) ~= 'table' then refuse('is no object') end
  if key.use ~= nil and key.use ~= 'sig' then return nil end
  if type(key.kid) ~= 'string' or #key.kid > 200 or not key.kid:find('^[\x21-\x7b\x7d\x7e]+$') then
    refuse('has no `kid` of 1 to 200 visible characters, without `|`')
  end
  local algorithms, text
  local curve = key.kty == 'EC' and CURVES[key.crv]
  if key.kty == 'RSA' then
    algorithms, text = RSA, rsa(number_of(key, 'n'), number_of(key, 'e'))
  elseif curve then
    algorithms, text = { curve[1] }, ec(curve, number_of(key, 'x'), number_of(key, 'y'))
  else
    refuse('is of a kind that HAProxy does not verify')
  end
  if key.alg == nil or key.alg == NULL then return key.kid, algorithms, text end
  for _, algorithm in ipairs(algorithms) do
    if key.alg == algorithm then return key.kid, { algorithm }, text end
  end
  refuse('is for what HAProxy does not verify with it')
end

-- A key set's usable keys, as `<kid>|<algorithm>` to what `verify_token` needs; an error of `refuse` for what is none.
local function keys_of(text)
  if #text > MOST_BYTES then refuse('has more than ' .. MOST_BYTES // 1024 .. ' KiB') end
  local set = parsed(text)
  if type(set) ~= 'table' or type(set.keys) ~= 'table' or (next(set.keys) ~= nil and #set.keys == 0) then
    no_set()
  end
  local found, ids, count = {}, {}, 0
  for _, key in ipairs(set.keys) do
    local read, kid, algorithms, made = pcall(key_of, key)
    if not read and type(kid) ~= 'table' then error(kid) end
    if read and kid then
      if ids[kid] then refuse('has two keys with the id ' .. kid) end
      ids[kid], count = true, count + 1
      for _, algorithm in ipairs(algorithms) do
        found[kid .. '|' .. algorithm] = { algorithm = algorithm, pem = made }
      end
    end
  end
  if count == 0 then refuse('has no key that HAProxy verifies with') end
  if count > MOST_KEYS then refuse('has more than ' .. MOST_KEYS .. ' keys') end
  return found
end

local function text_of(path)
  local file = assert(io.open(path, 'rb'))
  local text = file:read('a')
  file:close()
  return text
end

local keys = {}
-- Where HAProxy has each PEM from, as long as it runs; how many these are, and how many files there were.
local loaded, count, files = {}, 0, 0
for entry, algorithm, number in text_of(FOLDER .. '/jwt.map'):gmatch('([^\n]+|(%w+)) (%d+)\n') do
  local path = FOLDER .. '/jwt-' .. number .. '.pem'
  keys[entry] = { algorithm = algorithm, pem = text_of(path) }
end

-- Two processes share the folder while one takes over from the other.
local source = assert(io.open('/dev/urandom', 'rb'))
local own = source:read(8):gsub('.', function(byte) return string.format('%02x', byte:byte()) end)
source:close()

-- What jwt_verify says: 1, or why not. The first time it finds the key in a file, which nobody needs afterwards.
local function verified(txn, token, key)
  local path = loaded[key.pem]
  if path then return txn.c:jwt_verify(token, key.algorithm, path) end
  files = files + 1
  path = RUN_FOLDER .. '/jwt-' .. own .. '-' .. files .. '.pem'
  local file = assert(io.open(path, 'wb'))
  file:write(key.pem)
  file:close()
  local answer = txn.c:jwt_verify(token, key.algorithm, path)
  os.remove(path)
  loaded[key.pem], count = path, count + 1
  return answer
end

-- Sets txn.jwt_key if the token's header names a key of the issuer, and txn.jwt_verified to 1 if its signature is right.
core.register_action('verify_token', { 'http-req' }, function(txn)
  local key = keys[(txn:get_var('txn.jwt_kid') or '') .. '|' .. (txn:get_var('txn.jwt_alg') or '')]
  if not key then return end
  txn:set_var('txn.jwt_key', key.algorithm)
  txn:set_var('txn.jwt_verified', verified(txn, txn:get_var('txn.jwt'), key))
end)

-- A body in chunks, as HAProxy passes it on.
local function of_chunks(text)
  local parts, at = {}, 1
  while true do
    local _, last, digits = text:find('^(%x%x?%x?%x?%x?%x?%x?)[^%x\n]*\n', at)
    if not last then refuse('is cut off') end
    local size = tonumber(digits, 16)
    if size == 0 then return table.concat(parts) end
    parts[#parts + 1] = text:sub(last + 1, last + size)
    at = last + size + 3  -- \r\n
  end
end

-- Sets txn.jwt_list to `:<name>`, of the first of `names` (commas between) that the claim has, as text or in an array.
core.register_action('find_list', { 'http-req' }, function(txn, claim, names)
  local read, found = pcall(function() return parsed(txn.c:ub64dec(txn.c:field(txn:get_var('txn.jwt'), 2, '.'))) end)
  if not read then return end
  for part in claim:gmatch('[^.]+') do found = type(found) == 'table' and found[part] or nil end
  local has = {}
  for _, one in ipairs(type(found) == 'table' and found or { found }) do
    if type(one) == 'string' then has[one] = true end
  end
  for name in names:gmatch('[^,]+') do
    if has[name] then return txn:set_var('txn.jwt_list', ':' .. name) end
  end
end, 2)

-- The issuer's answer, whole; an error of `refuse` where there is none.
local function answered()
  local socket, parts, size = core.tcp(), {}, 0
  local until_s = core.now().sec + ANSWER_S
  socket:settimeout(ANSWER_S)
  if not socket:connect(RUN_FOLDER .. '/issuer.sock') then refuse('cannot be asked') end
  socket:send('GET / HTTP/1.1\r\nhost: issuer\r\nconnection: close\r\n\r\n')
  local part, over, rest
  repeat
    part, over, rest = socket:receive(BLOCK)
    parts[#parts + 1] = part or rest
    size = size + #(part or rest or '')
    socket:settimeout(1)
  until over or size > 2 * MOST_BYTES or core.now().sec > until_s
  socket:close()
  if size > 2 * MOST_BYTES then refuse('has more than ' .. MOST_BYTES // 1024 .. ' KiB') end
  if not over then refuse('is too slow') end
  local head, body = table.concat(parts):match('^(.-)\r\n\r\n(.*)$')
  local status = head and head:match('^HTTP/1%.%d (%d%d%d)')
  if status ~= '200' then refuse(status and 'answers with status ' .. status or 'does not answer') end
  return head:lower():find('\ntransfer%-encoding: *chunked') and of_chunks(body) or body
end

local said = ''
local function say(level, name, what)
  if what == said then return end
  said = what
  local line = '{"time":"%s","level":"%s","message":"the issuer\'s key set %s"}'
  what = what:gsub('["\\]', '\\%0'):gsub('%c', ' ')
  core.log(level, line:format(os.date('!%Y-%m-%dT%H:%M:%SZ'), name, what))
end

-- Takes over what the issuer has now, or leaves all as it is.
local function look()
  local read, found = pcall(function() return keys_of(answered()) end)
  if not read then
    say(core.warning, 'WARNING', (type(found) == 'table' and found.why or tostring(found)) .. '; its last keys stay')
  elseif count > MOST_LOADED then
    say(core.warning, 'WARNING', 'had more than ' .. MOST_LOADED .. ' keys since this gateway started; its last keys stay')
  else
    keys = found
    say(core.notice, 'INFO', 'was read')  -- the log has no `info` of Lua's (render.py, `_global`)
  end
end

if EVERY_S then
  core.register_task(function()
    while true do
      look()
      core.msleep(math.floor(EVERY_S * 1000))
    end
  end)
end

return keys_of  -- HAProxy drops it; tests compare it with the other reader
