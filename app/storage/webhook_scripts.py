"""The Lua scripts of webhooks: each is one step that nobody can come between.

Of one webhook, under es:webhook:{id}: `waiting` (its deliveries by their making), `due` (by their next attempt),
`flying` (those being sent, by the end of their lease), `records`, `bodies`, `recent` (those that are over), `state`
(failures in a row, paused until, when one was last claimed, and counts of what became of them). Times in milliseconds.
"""

MOST_WAITING = 1000
KEPT = 50  # of those that are over
PARTS = ("waiting", "due", "flying", "records", "bodies", "recent", "state")

_NOW = """
local function clock()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
"""

# For scripts in which something happens that is told: `tell` queues one delivery for each webhook that wants the event.
# hooks: the hash of webhooks. only: the one that alone is told, or "".
# One that cannot be read must not keep a job from changing its state.
TELL = (
    _NOW
    + f"""
local function tell(hooks, event, id, record, body, only)
  local all, told = redis.call('HGETALL', hooks), 0
  for i = 1, #all, 2 do
    local fine, hook = pcall(cjson.decode, all[i + 1])
    if fine and type(hook) == 'table' and hook.active and type(hook.events) == 'table' then
      local wants = only == all[i]
      if only == '' then
        for _, wanted in ipairs(hook.events) do wants = wants or wanted == event end
      end
      if wants then
        local place, at = 'es:webhook:' .. all[i], clock()
        redis.call('HSET', place .. ':records', id, record)
        redis.call('HSET', place .. ':bodies', id, body)
        redis.call('ZADD', place .. ':waiting', at, id)
        redis.call('ZADD', place .. ':due', at, id)
        if redis.call('ZCARD', place .. ':waiting') > {MOST_WAITING} then
          local oldest = redis.call('ZPOPMIN', place .. ':waiting')[1]
          redis.call('ZREM', place .. ':due', oldest)
          redis.call('HDEL', place .. ':records', oldest)
          redis.call('HDEL', place .. ':bodies', oldest)
          redis.call('HINCRBY', place .. ':state', 'dropped', 1)
        end
        told = told + 1
      end
    end
  end
  return told
end
"""
)

# KEYS: hash of webhooks. ARGV: event, id of the delivery, its record, its body, id of the webhook.
TELL_ONE = TELL + "return tell(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5])"

# KEYS: hash of webhooks. ARGV: lease in ms, how many may fly to one webhook, "1" if one that failed last may be chosen.
# The webhook that was chosen longest ago comes first. To one that failed last, one delivery flies at a time.
# Answers {webhook, delivery's record, its body, failures in a row}, or nothing.
CLAIM = (
    _NOW
    + """
local at, best, since, failed = clock(), nil, nil, 0
for _, id in ipairs(redis.call('HKEYS', KEYS[1])) do
  local place = 'es:webhook:' .. id
  local state = redis.call('HMGET', place .. ':state', 'paused', 'failures', 'claimed')
  local failures, claimed = tonumber(state[2] or '0'), tonumber(state[3] or '0')
  if tonumber(state[1] or '0') <= at and (failures == 0 or ARGV[3] == '1') and (not best or claimed < since) then
    redis.call('ZREMRANGEBYSCORE', place .. ':flying', '-inf', at)
    local most = failures > 0 and 1 or tonumber(ARGV[2])
    if redis.call('ZCARD', place .. ':flying') < most
      and #redis.call('ZRANGEBYSCORE', place .. ':due', '-inf', at, 'LIMIT', 0, 1) > 0 then
      best, since, failed = id, claimed, failures
    end
  end
end
if not best then return false end
local place = 'es:webhook:' .. best
local id = redis.call('ZRANGEBYSCORE', place .. ':due', '-inf', at, 'LIMIT', 0, 1)[1]
local record, body = redis.call('HGET', place .. ':records', id), redis.call('HGET', place .. ':bodies', id)
if not record or not body then
  redis.call('ZREM', place .. ':due', id)
  return false
end
redis.call('ZADD', place .. ':due', at + ARGV[1], id)
redis.call('ZADD', place .. ':flying', at + ARGV[1], id)
local turn = redis.call('TIME')
redis.call('HSET', place .. ':state', 'claimed', turn[1] * 1000000 + turn[2])
return {redis.call('HGET', KEYS[1], best), record, body, failed}
"""
)

# KEYS: hash of webhooks. ARGV: id of the webhook, id of the delivery, its record, "again", "delivered" or "failed",
# ms until the next attempt at it, ms until the next attempt at any.
# Does nothing where the delivery was dropped, or somebody else has ended it.
SETTLE = (
    _NOW
    + f"""
local place, at = 'es:webhook:' .. ARGV[1], clock()
redis.call('ZREM', place .. ':flying', ARGV[2])
if redis.call('HEXISTS', place .. ':records', ARGV[2]) == 0 then return 0 end
if ARGV[4] == 'again' then
  redis.call('HSET', place .. ':records', ARGV[2], ARGV[3])
  redis.call('ZADD', place .. ':due', at + ARGV[5], ARGV[2])
else
  redis.call('HDEL', place .. ':records', ARGV[2])
  redis.call('HDEL', place .. ':bodies', ARGV[2])
  redis.call('ZREM', place .. ':waiting', ARGV[2])
  redis.call('ZREM', place .. ':due', ARGV[2])
  redis.call('LPUSH', place .. ':recent', ARGV[3])
  redis.call('LTRIM', place .. ':recent', 0, {KEPT - 1})
  redis.call('HINCRBY', place .. ':state', ARGV[4], 1)
end
if ARGV[4] == 'delivered' then redis.call('HDEL', place .. ':state', 'failures', 'paused')
else
  redis.call('HINCRBY', place .. ':state', 'failures', 1)
  redis.call('HSET', place .. ':state', 'paused', at + ARGV[6])
end
return 1
"""
)

# KEYS: hash of webhooks, then what one has waiting. ARGV: its id, the webhook as it is when it is off.
# Answers whether it was there.
TURN_OFF = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end
return 1
"""

# KEYS: hash of webhooks, then all that one has. ARGV: its id. Answers whether it was there.
DROP = """
for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end
return redis.call('HDEL', KEYS[1], ARGV[1])
"""

# KEYS: hash of webhooks. ARGV: id, the webhook, how many there may be. Answers "there", "full" or "added".
ADD = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 'there' end
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return 'full' end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 'added'
"""
