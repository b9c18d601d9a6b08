"""The Lua scripts of the registry: each is one atomic step in Redis."""

JOINED_FIELD = "joined"
"""Field of a fleet event whose value is the record of a worker that joined."""

LEFT_FIELD = "left"
"""Field of a fleet event whose value is the incarnation that left on its own accord."""

STATS_FIELD = "stats"
"""Field of a fleet event whose value is a stats report."""

ANNOUNCE = """
-- KEYS lease, record, leases, epoch, fleet events, contract
-- ARGV incarnation, worker id, record, lease ttl in ms, takeover, events length, contract pairs
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and ARGV[5] == '0' then
  return {'LOST', holder}
end
for i = 7, #ARGV, 2 do
  local agreed = redis.call('HGET', KEYS[6], ARGV[i])
  if agreed and agreed ~= ARGV[i + 1] then
    return {'MISMATCH', ARGV[i], agreed}
  end
end
local ttl = tonumber(ARGV[4])
for i = 7, #ARGV, 2 do
  redis.call('HSET', KEYS[6], ARGV[i], ARGV[i + 1])
end
if #ARGV > 6 then
  redis.call('PEXPIRE', KEYS[6], ttl)
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[4], time[1] .. '.' .. time[2] .. '.' .. ARGV[1], 'NX')
redis.call('PEXPIRE', KEYS[4], 3600000)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ttl)
redis.call('SET', KEYS[2], ARGV[3], 'PX', ttl)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
redis.call('ZADD', KEYS[3], now + ttl, ARGV[2])
redis.call('PEXPIRE', KEYS[3], 10 * ttl)
if holder ~= ARGV[1] then
  redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[6], '*', 'joined', ARGV[3])
end
redis.call('PEXPIRE', KEYS[5], 60000)
return {'OK'}
"""

REMOVE = """
-- KEYS lease, record, stats, leases, fleet events
-- ARGV incarnation, worker id, events length
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
redis.call('ZREM', KEYS[4], ARGV[2])
redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[3], '*', 'left', ARGV[1])
return 1
"""

RESERVE = """
-- KEYS reservations
-- ARGV name, limit, wanted, in use, life in ms, report
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken = 0
local reports = {}
local held = redis.call('HGETALL', KEYS[1])
for i = 1, #held, 2 do
  if held[i] ~= ARGV[1] then
    local other = cmsgpack.unpack(held[i + 1])
    if other[1] < now then
      redis.call('HDEL', KEYS[1], held[i])
    else
      taken = taken + other[2]
      reports[#reports + 1] = other[3]
    end
  end
end
local part = math.min(tonumber(ARGV[3]), tonumber(ARGV[2]) - taken)
part = math.max(part, tonumber(ARGV[4]))
local life = tonumber(ARGV[5])
redis.call('HSET', KEYS[1], ARGV[1], cmsgpack.pack({now + life, part, ARGV[6]}))
redis.call('PEXPIRE', KEYS[1], 10 * life)
table.insert(reports, 1, tostring(part))
return reports
"""
