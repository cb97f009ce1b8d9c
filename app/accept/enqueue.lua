-- Put a new job last in its queue, as RQ's own enqueue does.
-- job: key of its hash; queue: key of the list; queues: RQ's set of queues; id: of the job;
-- ARGV[first] to ARGV[last]: the fields of its hash
local function enqueue(job, queue, queues, id, first, last)
  redis.call('HSET', job, unpack(ARGV, first, last))
  redis.call('SADD', queues, queue)
  redis.call('RPUSH', queue, id)
end
