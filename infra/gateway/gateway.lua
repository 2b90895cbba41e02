-- Reads the model's name from a request body where HAProxy's json_query found none: escaped text ("org\/name"),
-- nesting deeper than mjson's 20 levels, multipart forms. Also finds out what is wrong with a body that names no model.
-- Sets txn.model, or txn.fault to one of: json, type, missing, twice, form, number.

local MAX_NAME = 512

-- Looks for quotes alone, which is a hundred times faster than a pattern, and counts the backslashes before each.
local function string_end(text, start)
  local at = start + 1
  while true do
    at = text:find('"', at, true)
    if not at then return nil end
    local before = at - 1
    while before > start and text:byte(before) == 92 do before = before - 1 end
    if (at - before) % 2 == 1 then return at end
    at = at + 1
  end
end

local function container_end(text, start)
  local depth, at = 0, start
  while true do
    at = text:find('["%[%]{}]', at)
    if not at then return nil end
    local char = text:byte(at)
    if char == 34 then
      at = string_end(text, at)
      if not at then return nil end
    elseif char == 91 or char == 123 then
      depth = depth + 1
    else
      depth = depth - 1
      if depth == 0 then return at end
    end
    at = at + 1
  end
end

local function value_end(text, start)
  local char = text:sub(start, start)
  if char == '"' then return string_end(text, start) end
  if char == '{' or char == '[' then return container_end(text, start) end
  local after = text:find('[,}%]%s]', start)
  if not after or after == start then return nil end
  return after - 1
end

local ESCAPES = { b = '\b', f = '\f', n = '\n', r = '\r', t = '\t' }

local function decoded(text)
  if not text:find('\\', 1, true) then return text end
  text = text:gsub('\\u([dD][89aAbB]%x%x)\\u([dD][c-fC-F]%x%x)', function(high, low)
    return utf8.char(0x10000 + (tonumber(high, 16) - 0xD800) * 0x400 + tonumber(low, 16) - 0xDC00)
  end)
  return (text:gsub('\\(.)(%x?%x?%x?%x?)', function(char, hex)
    if char == 'u' and #hex == 4 then return utf8.char(tonumber(hex, 16)) end
    return (ESCAPES[char] or char) .. hex
  end))
end

-- Calls visit(key, first, last) with each top-level key of a JSON object and the bounds of its value, until visit
-- returns true. Returns 'json' when the text is not an object or is cut off, 'missing' when all keys were visited. With
-- `cut` it also visits a last value whose end is missing.
local function each_key(text, visit, cut)
  local at = text:find('[^ \t\r\n]')
  if not at or text:byte(at) ~= 123 then return 'json' end
  while true do
    at = text:find('[^ \t\r\n,]', at + 1)
    if not at then return 'json' end
    if text:byte(at) == 125 then return 'missing' end
    if text:byte(at) ~= 34 then return 'json' end
    local close = string_end(text, at)
    if not close then return 'json' end
    local key = decoded(text:sub(at + 1, close - 1))
    local colon = text:find('[^ \t\r\n]', close + 1)
    if not colon or text:byte(colon) ~= 58 then return 'json' end
    local first = text:find('[^ \t\r\n]', colon + 1)
    local last = first and value_end(text, first)
    if not last then
      if cut and first then visit(key, first, #text) end
      return 'json'
    end
    if visit(key, first, last) then return nil end
    at = last
  end
end

-- The top-level key "model" of a JSON object: its name, or nil and the fault. With `once` a second one is a fault.
local function model_of_json(text, once)
  local model, fault, found
  local ended = each_key(text, function(key, first, last)
    if key ~= 'model' then return false end
    if found then
      model, fault = nil, 'twice'
      return true
    end
    found = true
    if text:byte(first) == 34 then
      model = decoded(text:sub(first + 1, last - 1))
    else
      fault = text:sub(first, last) == 'null' and 'missing' or 'type'
    end
    return not once
  end)
  if ended == 'json' then model = nil end
  return model, fault or ended
end

-- Whether a part's head names the field "model". A key's case and blanks around it count for nothing, as for the
-- engine's parser (python-multipart). Nil where several names are in the head, or one that only looks like it.
local function names_model(head)
  local lowered, count = head:lower(), 0
  for _ in lowered:gmatch('%f[%w]name[^%w=]*=') do count = count + 1 end
  if count ~= 1 then return nil end
  local _, last = lowered:find('[;%s]name[ \t]*=[ \t]*')
  local value = last and head:sub(last + 1)
  if value and (value:find('^"model"[ \t]*[;\r]') or value:find('^model[ \t]*[;\r]')) then return true end
  local _, loose = lowered:find('%f[%w]name[^%w=]*=')
  if lowered:find('^[^%w]*model[^%w;\r]*[;\r]', loose + 1) and head:sub(loose + 1):find('model', 1, true) then return nil end
  return false
end

-- The boundary of a form. With `once` there is one only, and no charset in which other bytes would spell "model".
local function boundary_of(content_type, once)
  local lowered = content_type:lower()
  if once then
    local _, count = lowered:gsub('boundary[^%w]*=', '')
    local charset = lowered:match('charset[^%w]*=[^%w]*([%w-]*)')
    if count ~= 1 or (charset and charset ~= 'utf-8') then return nil end
  end
  local _, last = lowered:find('[;%s]boundary[ \t]*=[ \t]*')
  local found = last and content_type:sub(last + 1)
  return found and (found:match('^"([^"\\]+)"') or found:match('^([^";,%s]+)'))
end

-- The form field "model" of a multipart body. With `once` a second one is a fault, and so is whatever the engine's
-- parser might read otherwise.
local function model_of_form(text, content_type, once)
  local boundary = boundary_of(content_type, once)
  if not boundary then return nil, once and 'form' or 'json' end
  local marker = '--' .. boundary
  local at = text:find(marker, 1, true)
  local model
  while at do
    local head = at + #marker
    local following = text:find('\r\n' .. marker, head, true)
    local after = text:sub(head, head + 1)
    if after == '--' then break end
    if after == '\r\n' then
      -- What only begins like the boundary is a part of the field.
      while following and not text:find('^\r\n', following + 2 + #marker)
        and not text:find('^%-%-', following + 2 + #marker) do
        following = text:find('\r\n' .. marker, following + 2, true)
      end
      local blank = text:find('\r\n\r\n', head, true)
      if blank and following and blank < following then
        local named = names_model(text:sub(head, blank))
        if named == nil and once then return nil, 'form' end
        if named then
          if model then return nil, 'twice' end
          model = text:sub(blank + 4, following - 1)
          if not once then return model end
        end
      end
    end
    at = following and following + 2
  end
  return model, 'missing'
end

core.register_action('read_model', { 'http-req' }, function(txn)
  local body = txn.f:req_body() or ''
  local content_type = txn.f:req_fhdr('content-type') or ''
  local once = txn:get_var('txn.class') ~= nil
  local model, fault
  if txn:get_var('txn.form') then
    model, fault = model_of_form(body, content_type, once)
  else
    model, fault = model_of_json(body, once)
  end
  if model and #model > MAX_NAME then model = model:sub(1, MAX_NAME) end
  if model and not utf8.len(model) then model, fault = nil, 'json' end
  if model then txn:set_var('txn.model', model) else txn:set_var('txn.fault', fault) end
end)

local ANSWER_LENGTH = { max_tokens = true, max_completion_tokens = true, max_output_tokens = true }
local ANSWERS = { n = true, best_of = true }
local BYTES_PER_TOKEN = 4
-- A client's number counts as at most this, so that none can overflow a counter.
local MOST = 1000000

-- The number that the engine reads from a JSON value, of any length: pydantic also takes text ("4", "\u0034", "0_4")
-- and true. Nil and false for null; nil and true for what is no number.
local function number(text)
  if text == 'null' then return nil, false end
  if text == 'true' or text == 'false' then return text == 'true' and 1 or 0, false end
  if text:byte(1) == 34 then text = decoded(text:sub(2, -2)):gsub('_', '') end
  local found = tonumber(text)
  if not found or found ~= found then return nil, true end
  return math.floor(math.max(0, math.min(found, MOST))), false
end

-- How many prompts an array holds: its strings or arrays. An array of token ids is one prompt, and so is a list of
-- messages. With `all` whatever stands in an array counts, and each key of an object.
local function prompts(text, all)
  local object = text:byte(1) == 123
  local count, at = 0, text:find('[^ \t\r\n]', 2)
  while at and text:find(all and '^[^%]}]' or '^["%[]', at) do
    local last = value_end(text, at)
    if not last then break end
    if object then
      local colon = text:find('[^ \t\r\n:]', last + 1)
      last = colon and value_end(text, colon)
      if not last then break end
    end
    count = count + 1
    at = text:find('[^ \t\r\n,]', last + 1)
  end
  return math.max(1, count)
end

-- What a request may cost, in tokens: a quarter of its body's bytes, and the longest answer to each prompt, `n` times.
-- txn.answer is the answer's length where the body sets none; without it nothing is generated (embeddings).
-- txn.each is the key of several texts, each of which is read with all that is in the keys of txn.common, and answered
-- with a token.
-- txn.charge is both, txn.answers the answers alone: of a body larger than its buffer the first process knows a part,
-- and the second, which has the whole, says in its answer what these are.
-- What would be counted otherwise than the engine reads it is a fault: a number that is none, and a whole body that is
-- no JSON object in UTF-8. txn.partial and txn.chunked: the rest of the body may still come.
core.register_action('count_tokens', { 'http-req' }, function(txn)
  local body = txn.f:req_body() or ''
  local charge = #body // BYTES_PER_TOKEN
  local default = txn:get_var('txn.answer')
  if default then
    local length, answers, asked, fault = nil, 1, 1, nil
    -- If a key appears twice, the larger value counts, whichever the engine uses.
    local ended = each_key(body, function(key, first, last)
      if ANSWER_LENGTH[key] or ANSWERS[key] then
        local value, wrong = number(body:sub(first, last))
        if wrong then fault = 'number' end
        if ANSWER_LENGTH[key] then length = math.max(length or 0, value or default) end
        if ANSWERS[key] then answers = math.max(answers, value or 1) end
      end
      if (key == 'prompt' or key == 'messages') and body:byte(first) == 91 then
        asked = math.max(asked, prompts(body:sub(first, last)))
      end
    end)
    local whole = not txn:get_var('txn.partial') and not txn:get_var('txn.chunked')
    if ended == 'json' and whole then fault = 'json' end
    if fault then txn:set_var('txn.fault', fault) end
    local most = math.min((length or default) * answers * asked, MOST)
    txn:set_var('txn.answers', most)
    charge = charge + most
  end
  local each = txn:get_var('txn.each')
  if each then
    local common, several, shared = txn:get_var('txn.common'), 1, 0
    each_key(body, function(key, first, last)
      if key == each then several = math.max(several, prompts(body:sub(first, last), true)) end
      if common:find('/' .. key .. '/', 1, true) then shared = shared + last - first + 1 end
    end)
    charge = charge + several + (several - 1) * shared // BYTES_PER_TOKEN
  end
  txn:set_var('txn.charge', math.min(charge, MOST))
end)

-- Of a conversation's head at most this much counts: it may be a long document.
local OPENING_BYTES = 65536

-- What all turns of a conversation share and few other conversations do: its first user message, and what stands before
-- it. Raw text of an array of messages between two bounds, which may be cut off.
local function opening(text, first, last)
  local at = text:find('[^ \t\r\n]', first + 1)
  while at and at <= last and text:byte(at) == 123 do
    local close = value_end(text, at)
    if not close or close - first >= OPENING_BYTES then break end
    if text:sub(at, close):find('"role"[ \t\r\n]*:[ \t\r\n]*"user"') then return text:sub(first, close) end
    at = text:find('[^ \t\r\n,]', close + 1)
  end
  return text:sub(first, math.min(last, first + OPENING_BYTES - 1))
end

-- What all requests of a conversation have in common and its KV blocks depend on: the name of the model or adapter, the
-- salt of its blocks, and the session if the client names one (a header, or `prompt_cache_key`), else how it began. Nil
-- for a request without an answer before it: no replica has blocks of its own for it.
local function conversation(text, session)
  local found, answered = {}, nil
  each_key(text, function(key, first, last)
    if (key == 'messages' or key == 'input') and text:byte(first) == 91 then
      found.began = opening(text, first, last)
      answered = text:find('"role"[ \t\r\n]*:[ \t\r\n]*"assistant"', first)
    elseif key == 'system' or key == 'instructions' then
      found.system = text:sub(first, math.min(last, first + OPENING_BYTES - 1))
    elseif key == 'model' or key == 'cache_salt' or key == 'prompt_cache_key' then
      found[key] = text:sub(first, last)
    end
  end, true)
  if not answered then return nil end
  session = session or found.prompt_cache_key or (found.system or '') .. '\n' .. found.began
  return table.concat({ found.model or '', found.cache_salt or '', session }, '\n')
end

-- The replica that has a conversation's KV blocks, as txn.home. Each replica's address and the conversation give a number,
-- and the highest wins (rendezvous hashing): all gateways agree without a word, a replica that goes moves only its own
-- conversations, one that comes takes its share. One that has txn.most_open percent of the mean of open requests passes
-- it on to the next by these numbers, the same one each time. So does one without a free place: HAProxy would let the
-- request wait for this replica alone, behind its streams (`assign_server_and_queue`). Not set: HAProxy chooses, and
-- where all are full the request waits for the first place at any.
core.register_action('find_home', { 'http-req' }, function(txn)
  local key = conversation(txn.f:req_body() or '', txn.f:req_fhdr('x-session-id'))
  if not key then return end
  local digest, backend = txn.c:xxh64(key), 'model.' .. txn:get_var('txn.slug')
  local up, open = {}, 1
  -- Requests that left the queue for a replica and are not yet open there: each has a place that still looks free.
  local coming = txn.f:be_conn(backend) - txn.f:queue(backend)
  for name, server in pairs(core.backends[backend].servers) do
    local sessions = server:get_cur_sess()
    coming = coming - sessions
    -- HAProxy 2.8 writes into the text of this argument, so each call has its own.
    if name:find('^replica') and txn.f:srv_is_up(backend .. '/' .. name) == 1 then
      local own = sessions + server:get_pend_conn()
      -- By its address: in a cluster each gateway has other names for the replicas.
      up[#up + 1] = { name = name, open = own, rank = txn.c:xxh32(digest .. server:get_addr()) & 0xffffffff }
      open = open + own
    end
  end
  table.sort(up, function(a, b) return a.rank > b.rank end)
  for _, one in ipairs(up) do
    local free = txn.f:srv_conn_free(backend .. '/' .. one.name)  -- -1: as many as come
    if one.open * #up * 100 < open * txn:get_var('txn.most_open') and (free < 0 or free > coming) then
      txn:set_var('txn.home', one.name)
      return
    end
  end
end)

-- In a cluster replicas listen at any of these ports of Ray's pods. The backend `pods` has the pods' addresses, from DNS;
-- whoever answers there says which model it serves, and gets one of that model's servers. From then on HAProxy's own
-- check of the server looks after it. One task for each pod, so that one that does not answer delays no other.
-- The first process asks, and writes what it found to a file in the memory that both processes share. The other one has
-- no ports and reads the file: a question of its own would copy buffers of a whole body, which takes 30 ms.
local FOUND, FIRST, LAST = ...
local ROUND_MS, PATIENCE_MS = 2000, 1000
-- Ray gives out the lowest free port, and keeps one that a replica had for as long as an old stream may last. So the next
-- replica is at one of the few ports behind the last one, unless many have failed; every so many rounds it looks farther.
-- A closed port costs 0.2 ms of CPU.
local NEAR, FAR, ROUNDS = 8, 64, 10
-- The server of each replica by its address and port, and whether a server is one's, by its full name: HAProxy 2.8 makes
-- another object of a server each time.
local server_of, taken = {}, {}

-- The address of a pod; nil for one that DNS does not name, or no more.
local function address_of(pod)
  if pod:get_stats().status:find('^MAINT') then return nil end
  return pod:get_addr():match('^(%d+%.%d+%.%d+%.%d+):') or pod:get_addr():match('^(%x*:[%x:]+):%d+$')
end

-- What a replica says it serves, nil where none answers; and whether nobody is there at all, not even to refuse.
local function routes_at(address, port)
  local started = core.now()
  local host = address:find(':', 1, true) and '[' .. address .. ']' or address
  local answer = core.httpclient():get({ url = 'http://' .. host .. ':' .. port .. '/-/routes', timeout = PATIENCE_MS })
  if answer.status == 200 then return answer.body end
  local now = core.now()
  return nil, (now.sec - started.sec) * 1000 + (now.usec - started.usec) / 1000 >= PATIENCE_MS
end

-- A server of the model for the replica: one without an open stream, if there is one.
local function take(slug, address, port)
  local backend = core.backends['model.' .. slug]
  if not backend then return end
  local free, fewest
  for name, server in pairs(backend.servers) do
    local full = slug .. '/' .. name
    local open = name:find('^replica') and not taken[full] and server:get_cur_sess()
    if open and (not fewest or open < fewest) then free, fewest = { slug = slug, name = full, server = server }, open end
  end
  if not free then return core.Warning('more replicas of ' .. slug .. ' than servers') end
  free.server:set_addr(address, port)
  free.server:set_ready()
  taken[free.name], server_of[address .. ' ' .. port] = true, free
end

-- Whoever has the server gets no more requests; its streams go on.
local function release(place)
  local one = server_of[place]
  one.server:set_maint()
  taken[one.name], server_of[place] = nil, nil
end

local function is_down(place) return server_of[place].server:get_stats().status == 'DOWN' end

-- Of a pod the replicas that do not answer their check, or all.
local function give_back(address, all)
  for place in pairs(server_of) do
    if place:find(address .. ' ', 1, true) == 1 and (all or is_down(place)) then release(place) end
  end
end

-- Up to so many closed ports in a row.
local function look(address, most)
  local closed = 0
  for port = FIRST, LAST do
    local answer, silent = nil, false
    if server_of[address .. ' ' .. port] then
      closed = 0
    else
      answer, silent = routes_at(address, port)
      closed = answer and 0 or closed + 1
    end
    if silent or closed == most then return end
    for slug in (answer or ''):gmatch('"/([^"]+)"%s*:') do take(slug, address, port) end
  end
end

local function follow(pod)
  local known, round = nil, 0
  while true do
    local address = address_of(pod)
    if known ~= address then
      round = 0
      if known then give_back(known, true) end
    end
    if address then
      give_back(address, false)
      look(address, round % ROUNDS == 0 and FAR or NEAR)
    end
    known, round = address, round + 1
    core.msleep(ROUND_MS)
  end
end

-- Writes a new file and renames it, so that nobody reads half a file.
local function write(text)
  local done, fault = pcall(function()
    local file = assert(io.open(FOUND .. '.new', 'wb'))
    assert(file:write(text))
    assert(file:close())
    assert(os.rename(FOUND .. '.new', FOUND))
  end)
  if not done then core.Warning('cannot tell the process for large bodies where replicas are: ' .. fault) end
  return done
end

-- Tells the process for large bodies: lines of address, port and slug. One that a newer process replaces is silent.
local function tell()
  local told
  while core.get_info().Stopping == 0 do
    local lines = {}
    for place, one in pairs(server_of) do lines[#lines + 1] = place .. ' ' .. one.slug .. '\n' end
    table.sort(lines)
    local text = table.concat(lines)
    if text ~= told and write(text) then told = text end
    core.msleep(ROUND_MS)
  end
end

-- The slug of each replica by its address and port, as the first process wrote it last.
local function heard()
  local slug_of, file = {}, io.open(FOUND, 'rb')
  if not file then return slug_of end
  for line in file:lines() do
    local place, slug = line:match('^(%S+ %d+) (%S+)$')
    if place then slug_of[place] = slug end
  end
  file:close()
  return slug_of
end

-- Only a pod's absence from DNS takes away a replica that answers its check: after a restart the first process knows none.
local function hear(pods)
  while true do
    local slug_of, there = heard(), {}
    for _, pod in pairs(pods) do there[address_of(pod) or ''] = true end
    for place, one in pairs(server_of) do
      if not there[place:match('^%S+')] or (slug_of[place] ~= one.slug and is_down(place)) then release(place) end
    end
    for place, slug in pairs(slug_of) do
      local address, port = place:match('^(%S+) (%d+)$')
      if there[address] and not server_of[place] then take(slug, address, tonumber(port)) end
    end
    core.msleep(ROUND_MS)
  end
end

if FOUND then
  FIRST, LAST = tonumber(FIRST), tonumber(LAST)
  core.register_init(function()
    if core.thread > 1 then return end
    local pods = core.backends['pods'].servers
    if not FIRST then return core.register_task(hear, pods) end
    core.register_task(tell)
    for _, pod in pairs(pods) do core.register_task(follow, pod) end
  end)
end

-- Requests and bytes per key, by the key's name, as Prometheus text.
local KEY_METRICS = {
  { 'modelfleet_gateway_key_requests_total', 'counter', 'http_req_cnt', 'Requests by API key, with refused ones.' },
  { 'modelfleet_gateway_key_errors_total', 'counter', 'http_err_cnt', 'Requests by API key that ended in a 4xx.' },
  { 'modelfleet_gateway_key_sent_bytes_total', 'counter', 'bytes_out_cnt', 'Response bytes by API key.' },
  { 'modelfleet_gateway_key_open_requests', 'gauge', 'conn_cur', 'Requests open now by API key.' },
}

core.register_service('key_metrics', 'http', function(applet)
  local entries = core.backends['limits'].stktable:dump()
  local lines = {}
  for _, metric in ipairs(KEY_METRICS) do
    lines[#lines + 1] = '# HELP ' .. metric[1] .. ' ' .. metric[4]
    lines[#lines + 1] = '# TYPE ' .. metric[1] .. ' ' .. metric[2]
    for key, entry in pairs(entries) do
      lines[#lines + 1] = metric[1] .. '{key="' .. key .. '"} ' .. tostring(entry[metric[3]] or 0)
    end
  end
  local text = table.concat(lines, '\n') .. '\n'
  applet:set_status(200)
  applet:add_header('content-type', 'text/plain; version=0.0.4')
  applet:add_header('content-length', tostring(#text))
  applet:start_response()
  applet:send(text)
end)
