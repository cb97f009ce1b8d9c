-- Legal moves of a record, and the jobs that follow from them. See `Records.dispatch`.
-- KEYS: 1 record, 2 index of records, 3 queue of the jobs, 4 RQ's set of queues, 5 mark of what was removed,
--       then the jobs
-- ARGV: 1 ttl (s), 2 now (s), 3 member of the index, 4 stream, 5 whether nobody is to be told ('': not so),
--       6 whether no more than Cog's token vouches for what is stored ('': not so), 7 number of moves;
--       of each move: new state, number of legal states, those, number of fields to set, those;
--       of each job: id, number of fields, those
if redis.call('EXISTS', KEYS[5]) == 1 then return -1 end
local record = redis.call('HMGET', KEYS[1], 'state', 'quiet', 'source')
if ARGV[5] ~= '' and record[1] and not record[2] then return -2 end
if ARGV[6] ~= '' and record[1] and record[3] ~= 'cog' then return -3 end
local at = 8
local function take()
  at = at + 1
  return ARGV[at - 1]
end
local moves = 0
for _ = 1, tonumber(ARGV[7]) do
  local to, state, legal = take(), redis.call('HGET', KEYS[1], 'state'), false
  for _ = 1, tonumber(take()) do legal = take() == state or legal end
  local count = tonumber(take())
  if legal then
    redis.call('HSET', KEYS[1], 'state', to, unpack(ARGV, at, at + count - 1))
    if to == 'stored' then redis.call('HDEL', KEYS[1], 'body', 'body_at', 'outline', 'error') end
    if redis.call('HEXISTS', KEYS[1], 'body') + redis.call('HEXISTS', KEYS[1], 'body_at') == 0 then
      redis.call('EXPIRE', KEYS[1], ARGV[1])
    end
    redis.call('ZADD', KEYS[2], ARGV[2], ARGV[3])
    redis.call('XADD', ARGV[4], 'MAXLEN', '~', 100000, '*', 'of', ARGV[3], 'what', to)
    moves = moves + 1
  end
  at = at + count
end
for i = 6, #KEYS do
  local id, count = take(), tonumber(take())
  -- As RQ's own enqueue with `unique`: a job that is known, dead letters included, is left alone.
  if redis.call('EXISTS', KEYS[i]) == 0 then
    enqueue(KEYS[i], KEYS[3], KEYS[4], id, at, at + count - 1)
  end
  at = at + count
end
return moves
