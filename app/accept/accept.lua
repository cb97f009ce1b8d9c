-- One delivery: its record, and the job that works on it. See `Records.accept_command`.
-- KEYS: 1 record, 2 index of records, 3 mark of what was removed, 4 mark of this delivery,
--       where there is a job 5 job, 6 queue of the job, 7 RQ's set of queues, 8 its failed jobs;
--       the last three: what merely runs, where it is awaited, and where it is not
-- ARGV: 1 'finish' or 'progress', 2 rank, 3 member of the index, 4 ttl (s), 5 now (s), 6 job id or '',
--       7 stream, 8 state 'running', 9 state 'received', 10 its score where it is awaited ('': it is not),
--       11 whether handlers are to be told ('': nobody), 12 state of what was passed by, 13 state to tell it,
--       14 how long the mark of this delivery stands (s; '': it has no id),
--       15 whether no more than Cog's token vouches for it ('': not so),
--       16 context ('': none), 17 parent ('': none), 18 who tells of these: 'run' (we), 'api' or 'url',
--       19 whether the event comes with it ('': it is only asked whether it is a repeat),
--       20 how many predictions that merely run are remembered,
--       21 how many arguments are fields of the record, then those, then the fields of the job
local record = redis.call('HMGET', KEYS[1], 'state', 'rank', 'source', 'context', 'context_from')
local state, finish, cog = record[1], ARGV[1] == 'finish', ARGV[15] ~= ''
-- A signature covers no path: what was sent to one must not count once more on another.
if ARGV[14] ~= '' then
  local kind = string.match(ARGV[3], '^%a+')
  local first = redis.call('SET', KEYS[4], kind, 'EX', ARGV[14], 'NX', 'GET')
  if first and first ~= kind then return finish and 'duplicate' or 'stale' end
end
local removed = redis.call('EXISTS', KEYS[3]) == 1
local overruled = false
if state and not removed and (record[3] == 'cog') ~= cog then
  if cog then return finish and 'foreign' or 'stale' end
  -- What Replicate vouches for beats a token, which knows of a prediction no more than its id.
  overruled = finish or state == ARGV[8]
  if overruled then state, record = false, {} end
end
local over = (state and state ~= ARGV[8]) or removed
local outcome = 'accepted'
if over then
  outcome = finish and 'duplicate' or 'stale'
elseif not finish then
  local rank = record[2]
  outcome = 'progress'
  if rank and rank == ARGV[2] then outcome = 'duplicate' end
  if rank and rank > ARGV[2] then outcome = 'stale' end
end
if outcome == 'accepted' and ARGV[19] == '' then return 'wanted' end
if overruled then redis.call('DEL', KEYS[1]) end
-- A context that we have noted ourselves is firm. Nobody signs the URL that tells of another one: that of
-- the end counts, and until then the one that all agree on.
local firm = record[5] == 'run' or (state and not record[5] and record[3] == 'run')
local takes = ARGV[18] == 'run' or not firm and not (ARGV[18] == 'api' and ARGV[16] == '')
if takes and ARGV[18] ~= 'run' and not finish and state and not over then
  takes = false
  if (record[4] or '') ~= ARGV[16] then
    redis.call('HDEL', KEYS[1], 'context', 'parent')
    redis.call('HSET', KEYS[1], 'context_from', 'disputed')
  end
end
-- What reconciliation was faster to find, and nobody was to be told of: its own event has come after all.
local news = over and finish and ARGV[11] ~= '' and redis.call('HDEL', KEYS[1], 'quiet') == 1
local again = news and state == ARGV[12]
if again then redis.call('HSET', KEYS[1], 'state', ARGV[13]) end
local last = 21 + tonumber(ARGV[21])
if outcome == 'accepted' or outcome == 'progress' then
  redis.call('HSET', KEYS[1], unpack(ARGV, 22, last))
  if takes then
    if state then redis.call('HDEL', KEYS[1], 'context', 'parent') end
    if ARGV[16] ~= '' then redis.call('HSET', KEYS[1], 'context', ARGV[16]) end
    if ARGV[17] ~= '' then redis.call('HSET', KEYS[1], 'parent', ARGV[17]) end
  end
  if firm or ARGV[18] == 'run' then redis.call('HSET', KEYS[1], 'context_from', 'run') end
  if outcome == 'accepted' then
    if state then
      redis.call('HDEL', KEYS[1], 'outline', 'live', ARGV[11] ~= '' and 'quiet' or 'live')
      redis.call('PERSIST', KEYS[1])
    end
  else
    redis.call('EXPIRE', KEYS[1], ARGV[4])
  end
  redis.call('ZADD', KEYS[2], ARGV[5], ARGV[3])
  local to = finish and ARGV[9] or ARGV[8]
  redis.call('XADD', ARGV[7], 'MAXLEN', '~', 100000, '*', 'of', ARGV[3], 'what', to)
end
if outcome == 'progress' and ARGV[10] ~= '' then
  redis.call('ZADD', KEYS[#KEYS - 1], ARGV[10], ARGV[3])
  -- Without a token nobody asks for what fell silent.
  redis.call('ZREMRANGEBYSCORE', KEYS[#KEYS - 1], '-inf', ARGV[5] - ARGV[4])
elseif finish and not cog then
  redis.call('ZREM', KEYS[#KEYS - 1], ARGV[3])
  redis.call('ZREM', KEYS[#KEYS], ARGV[3])
end
-- Whoever may send can tell of any number that merely run: those go that were not heard of for longest.
local running = KEYS[#KEYS - 2]
if finish then
  redis.call('ZREM', running, ARGV[3])
elseif outcome == 'progress' and ARGV[18] == 'url' and not firm then
  redis.call('ZADD', running, ARGV[5], ARGV[3])
  local surplus = redis.call('ZCARD', running) - ARGV[20]
  for _, member in ipairs(surplus > 0 and redis.call('ZRANGE', running, 0, surplus - 1) or {}) do
    local key = string.sub(KEYS[1], 1, -1 - #ARGV[3]) .. member
    local one = redis.call('HMGET', key, 'state', 'source', 'context_from')
    redis.call('ZREM', running, member)
    if one[1] == ARGV[8] and (one[2] == 'cog') == cog and one[3] ~= 'run' then
      redis.call('DEL', key)
      redis.call('ZREM', KEYS[2], member)
      redis.call('ZREM', KEYS[#KEYS - 1], member)
    end
  end
end
-- An event whose job is gone, or failed long ago, gets one: nothing else would ever work on it.
local waits = outcome == 'accepted' or again or (finish and state == ARGV[9])
if waits then
  local status = redis.call('HGET', KEYS[5], 'status')
  -- A job that waits for another try at what was overruled need not wait.
  local is_late = overruled and (status == 'scheduled' or status == 'deferred')
  if is_late or not LIVE[status] then
    redis.call('DEL', KEYS[5])
    redis.call('ZREM', KEYS[8], ARGV[6])
    enqueue(KEYS[5], KEYS[6], KEYS[7], ARGV[6], last + 1, #ARGV)
  end
end
return outcome
