"""What the sweep does in Redis, each in one step that looks again: the world has moved on since it looked."""

MAKE_JOB = """
-- KEYS: 1 record, 2 job, 3 queue of the job, 4 RQ's set of queues
-- ARGV: 1 state that the record must have, 2 job id, then the fields of the job
local live = {queued = true, started = true, scheduled = true, deferred = true}
local status = redis.call('HGET', KEYS[2], 'status')
if redis.call('HGET', KEYS[1], 'state') ~= ARGV[1] or live[status] then return 0 end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
redis.call('SADD', KEYS[4], KEYS[3])
redis.call('RPUSH', KEYS[3], ARGV[2])
return 1
"""

REQUEUE_JOB = """
-- KEYS: 1 job, 2 its queue, 3 jobs taken, 4 started, 5 scheduled, 6 deferred, 7 mark, 8 RQ's set of queues
-- ARGV: 1 job id, 2 now (s), 3 for how long it must have been lost (s)
-- RQ moves some jobs in two steps: only what is found lost twice is lost.
local live = {queued = true, started = true, scheduled = true, deferred = true}
local placed = not live[redis.call('HGET', KEYS[1], 'status')]
  or redis.call('LPOS', KEYS[2], ARGV[1]) or redis.call('LPOS', KEYS[3], ARGV[1])
  or redis.call('ZSCORE', KEYS[5], ARGV[1]) or redis.call('ZSCORE', KEYS[6], ARGV[1])
local run = ARGV[1] .. ':'
for _, entry in ipairs(placed and {} or redis.call('ZRANGE', KEYS[4], 0, -1)) do
  placed = placed or string.sub(entry, 1, #run) == run
end
if placed then
  redis.call('DEL', KEYS[7])
  return 0
end
local since = redis.call('GET', KEYS[7])
if not since then redis.call('SET', KEYS[7], ARGV[2], 'EX', 300) end
if not since or ARGV[2] - since < tonumber(ARGV[3]) then return 0 end
redis.call('DEL', KEYS[7])
redis.call('HSET', KEYS[1], 'status', 'queued')
redis.call('SADD', KEYS[8], KEYS[2])
redis.call('RPUSH', KEYS[2], ARGV[1])
return 1
"""

LIST_RECORD = """
-- KEYS: 1 record, 2 index of records
-- ARGV: 1 member of the index, 2 now (s)
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('ZADD', KEYS[2], 'NX', ARGV[2], ARGV[1])
"""

UNLIST_RECORD = """
-- KEYS: 1 record, 2 index of records
-- ARGV: 1 member of the index
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
return redis.call('ZREM', KEYS[2], ARGV[1])
"""
