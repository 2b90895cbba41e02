-- What a replica has to show before the gateway believes what a request took: a secret of this process, which only the
-- requests that it sends to replicas carry. HAProxy's own random numbers are no secret: x-request-id shows them.
-- One Lua state for all threads (`lua-load`), so that all have the same one.
local source = assert(io.open('/dev/urandom', 'rb'))
local secret = source:read(16):gsub('.', function(byte) return string.format('%02x', byte:byte()) end)
source:close()

core.register_fetches('settle_secret', function() return secret end)
