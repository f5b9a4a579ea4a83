"""The Lua scripts that change a job: each is one step that nobody can come between."""

from app.storage.webhook_scripts import TELL

# In the place of a key that there is not: a user of Redis may be allowed those that begin with es: alone.
NO_KEY = "es:none"

# A job takes one of the places that an API key has. Answers how many are taken, where there is none left.
_PLACE = """
local function place(of_key, open, id, most)
  for _, over in ipairs(redis.call('SDIFF', of_key, open)) do redis.call('SREM', of_key, over) end
  local held = redis.call('SCARD', of_key)
  if most ~= '' and held >= tonumber(most) then return held end
  redis.call('SADD', of_key, id)
  return nil
end
"""

# KEYS: job hash, event stream, set of open jobs, all jobs, set of the open jobs of its API key or NO_KEY.
# ARGV: id, created_at in ms, event, how many open jobs that key may have or "", then fields.
# Answers how many it has, where those are too many. A repeated call (the answer was lost on the way) does nothing.
ADD = (
    _PLACE
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then return false end
if KEYS[5] ~= 'es:none' then
  local held = place(KEYS[5], KEYS[3], ARGV[1], ARGV[4])
  if held then return held end
end
for i = 5, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('SADD', KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[4], ARGV[2], ARGV[1])
redis.call('XADD', KEYS[2], '*', 'type', 'state', 'data', ARGV[3])
return false
"""
)

# KEYS: job hash, event stream, lease, set of open jobs, and of a trial its parent's hash and that one's open trials,
# else twice NO_KEY; hash of webhooks; set of the open jobs of the API key that it is to count for, or NO_KEY; how many
# ended.
# ARGV: statuses it may be in ("|a|b|"), the next, attempt expected or "", token, lease in ms or "", event, id,
# "1" when it ends, then what webhooks are told: event or "", delivery's id, its record, its body; how many open jobs
# that key may have or ""; its kind; then fields.
# The token makes a repeated call (the answer was lost on the way) harmless.
# A trial that ends is news to its parent, in the same step: a parent that parks itself meanwhile cannot miss it.
# Webhooks are told in the same step, too.
MOVE = (
    TELL
    + _PLACE
    + """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return {'missing'} end
local attempt = redis.call('HGET', KEYS[1], 'attempt')
if redis.call('HGET', KEYS[1], 'token') == ARGV[4] then return {'ok'} end
if not string.find(ARGV[1], '|' .. status .. '|', 1, true) or (ARGV[3] ~= '' and ARGV[3] ~= attempt) then
  return {'stale', status, attempt}
end
if KEYS[8] ~= 'es:none' then
  local held = place(KEYS[8], KEYS[4], ARGV[7], ARGV[13])
  if held then return {'full', held} end
end
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'token', ARGV[4])
for i = 15, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
if ARGV[5] == '' then
  if ARGV[2] ~= 'cancelling' then redis.call('DEL', KEYS[3]) end
else redis.call('SET', KEYS[3], redis.call('HGET', KEYS[1], 'attempt'), 'PX', ARGV[5]) end
if ARGV[8] == '1' then
  redis.call('SREM', KEYS[4], ARGV[7])
  redis.call('HINCRBY', KEYS[9], ARGV[14] .. ' ' .. ARGV[2], 1)
else redis.call('SADD', KEYS[4], ARGV[7]) end
if KEYS[5] ~= 'es:none' then
  if ARGV[8] ~= '1' then redis.call('SADD', KEYS[6], ARGV[7])
  elseif redis.call('SREM', KEYS[6], ARGV[7]) == 1 and redis.call('EXISTS', KEYS[5]) == 1 then
    redis.call('HINCRBY', KEYS[5], 'news', 1)
  end
end
if ARGV[2] == 'running' then redis.call('HDEL', KEYS[1], 'news') end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 20000, '*', 'type', 'state', 'data', ARGV[6])
if ARGV[9] ~= '' then tell(KEYS[7], ARGV[9], ARGV[10], ARGV[11], ARGV[12], '') end
return {'ok'}
"""
)

# KEYS: job hash, lease. ARGV: attempt, lease in ms.
# Answers the status, or "fenced" for an attempt that is no longer the one.
RENEW = """
local status = redis.call('HGET', KEYS[1], 'status')
if not status or redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[1] then return 'fenced' end
if status ~= 'running' and status ~= 'cancelling' then return 'fenced' end
if redis.call('HGET', KEYS[1], 'waiting') == 'true' then return 'fenced' end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return status
"""

# KEYS: job hash, event stream, history list. ARGV: attempt, type, data, history row or "", then fields.
NOTE = """
local status = redis.call('HGET', KEYS[1], 'status')
if redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[1] then return 0 end
if status ~= 'running' and status ~= 'cancelling' then return 0 end
for i = 5, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
if ARGV[4] ~= '' then redis.call('RPUSH', KEYS[3], ARGV[4]) end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 20000, '*', 'type', ARGV[2], 'data', ARGV[3])
return 1
"""

# KEYS: hash of deployments, hash of what was ready last. ARGV: name, created_at, generation, model.
# The newest generation wins, whoever comes late. A deployment that was deleted leaves nothing.
READY = """
local held = redis.call('HGET', KEYS[1], ARGV[1])
held = held and cjson.decode(held)
if not held or held.created_at ~= ARGV[2] then return 0 end
local last = redis.call('HGET', KEYS[2], ARGV[1])
last = last and cjson.decode(last)
local before = held.previous
if last and last.made == ARGV[2] then
  if last.model == ARGV[4] or last.generation >= tonumber(ARGV[3]) then return 0 end
  before = last.model
end
if before == cjson.null or before == ARGV[4] then before = nil end
local now = {made = ARGV[2], generation = tonumber(ARGV[3]), model = ARGV[4], before = before}
redis.call('HSET', KEYS[2], ARGV[1], cjson.encode(now))
return 1
"""

# KEYS: hash. ARGV: field, generation of what it replaces ("" when it must be new), that one's created_at or "", JSON.
# Compare-and-set of a deployment. Generations begin anew when one is deleted and made again: created_at tells them
# apart.
DEPLOY = """
local held = redis.call('HGET', KEYS[1], ARGV[1])
local before = held and cjson.decode(held)
local generation = before and tostring(before.generation) or ''
if generation ~= ARGV[2] or (before and ARGV[3] ~= '' and before.created_at ~= ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[4])
return 1
"""

# A new trial, if it is new, and if the attempt at its parent that asks for it is still the one.
# KEYS: trial's hash, its events, open jobs, all trials, its parent's hash, that one's open trials, all of its trials.
# ARGV: parent's attempt, id, created_at in ms, event, then fields.
ADD_TRIAL = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 'there' end
if redis.call('HGET', KEYS[5], 'status') ~= 'running' or redis.call('HGET', KEYS[5], 'attempt') ~= ARGV[1] then
  return 'fenced'
end
for i = 5, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('SADD', KEYS[3], ARGV[2])
redis.call('SADD', KEYS[6], ARGV[2])
redis.call('ZADD', KEYS[4], ARGV[3], ARGV[2])
redis.call('ZADD', KEYS[7], ARGV[3], ARGV[2])
redis.call('XADD', KEYS[2], '*', 'type', 'state', 'data', ARGV[4])
return 'added'
"""

# The end of a step: the job waits for its trials, or, where one has ended since the step began, for its next step.
# KEYS: job hash, lease, its open trials. ARGV: attempt, token, attempts that the next step may take, then fields.
# Answers "waiting", "due", "nothing" when there is nothing to wait for, or {"stale", status}.
PARK = """
local status = redis.call('HGET', KEYS[1], 'status')
if redis.call('HGET', KEYS[1], 'token') == ARGV[2] then
  return {redis.call('HGET', KEYS[1], 'due') == 'true' and 'due' or 'waiting'}
end
if status ~= 'running' or redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[1]
  or redis.call('HGET', KEYS[1], 'waiting') == 'true' then return {'stale', status or 'gone'} end
local news = tonumber(redis.call('HGET', KEYS[1], 'news') or '0')
if news == 0 and redis.call('SCARD', KEYS[3]) == 0 then return {'nothing'} end
redis.call('HSET', KEYS[1], 'token', ARGV[2])
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('DEL', KEYS[2])
if news == 0 then redis.call('HSET', KEYS[1], 'waiting', 'true') return {'waiting'} end
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'due', 'true', 'allowed_attempts', attempt + ARGV[3] - 1)
return {'due'}
"""

# KEYS: job hash. ARGV: token, attempts that the next step may take. Answers whether it is this call that woke it.
WAKE = """
if redis.call('HGET', KEYS[1], 'token') == ARGV[1] then return 1 end
if redis.call('HGET', KEYS[1], 'status') ~= 'running' or redis.call('HGET', KEYS[1], 'waiting') ~= 'true' then
  return 0
end
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'waiting', 'false', 'due', 'true', 'token', ARGV[1],
  'allowed_attempts', attempt + ARGV[2] - 1)
return 1
"""

# KEYS: job hash, lease. ARGV: attempt, token, lease in ms. Answers whether the step that is due is now this caller's.
CLAIM = """
if redis.call('HGET', KEYS[1], 'token') == ARGV[2] then return 1 end
if redis.call('HGET', KEYS[1], 'status') ~= 'running' or redis.call('HGET', KEYS[1], 'due') ~= 'true'
  or redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'due', 'false', 'token', ARGV[2])
redis.call('HDEL', KEYS[1], 'news')
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
return 1
"""
