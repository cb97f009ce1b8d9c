"""Repairs in Redis: records without a job, jobs in no list, jobs that ended without a word.

The sweep does not act on what it read: for each gap that was found a script in Redis looks again and mends in
one step. So it may run twice, at the same time, and die anywhere.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime

from redis import Redis
from rq.job import Job
from rq.queue import Queue
from rq.worker_registration import clean_worker_registry

from app.accept import queues
from app.accept.records import Records
from app.core.hosts import HostRules
from app.core.lifecycle import PATIENCE, Move, Repair, State
from app.core.names import PERSIST_QUEUE, RECORDS, Kind, lost_mark, record_key, record_member
from app.core.policy import PERSIST_MARGIN, keep_until
from app.maintain.backlog import telling_queues
from app.maintain.gaps import Gap, Gaps, RecordGap
from app.maintain.user_jobs import tell, untold
from app.storage.store import Storage

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

log = logging.getLogger("outkeep.sweep")


class Sweep:
    """The half of the sweep that looks at Redis. `ttl` is how long records live, in seconds.

    `users` are queues beside ours that hold jobs of the user's.
    """

    def __init__(
        self, redis: Redis, *, ttl: int, clock: Callable[[], datetime], users: Sequence[str] = ()
    ) -> None:
        self._redis = redis
        self._gaps = Gaps(redis, ttl=ttl, clock=clock, users=users)
        self._records = Records(redis, ttl=ttl)
        self._clock = clock
        self._make_job = redis.register_script(MAKE_JOB)
        self._requeue_job = redis.register_script(REQUEUE_JOB)
        self._list_record = redis.register_script(LIST_RECORD)
        self._unlist_record = redis.register_script(UNLIST_RECORD)

    def run(self) -> Counter[Repair]:
        """Mend what is wrong; how often which repair was made. Raises redis' errors."""
        mended: Counter[Repair] = Counter()
        for gap in self._gaps.look():
            if self.mend(gap):
                mended[gap.repair] += 1
        return mended

    def mend(self, gap: Gap) -> bool:
        """Mend one gap, and say so; whether it was still there. Raises redis' errors."""
        if not self._mend(gap):
            return False
        log.warning("mended: %s", gap.repair, extra={"repair": str(gap.repair), **gap.facts})
        return True

    def _mend(self, gap: Gap) -> bool:
        match gap.repair:
            case Repair.RECORD_LISTED:
                return self._list(Kind(gap.where), gap.name)
            case Repair.RECORD_UNLISTED:
                return self._unlist(Kind(gap.where), gap.name)
            case Repair.RECORD_FAILED:
                fields = {"error": "job_failed"}
                return self._records.move(Kind(gap.where), gap.name, Move.FAIL, self._clock(), fields)
            case Repair.JOB_REQUEUED:
                return self._requeue(self._gaps.queues[gap.where], gap.name)
            case Repair.WORKER_DROPPED:
                clean_worker_registry(self._gaps.queues[gap.where])
                return True
            case _:
                assert isinstance(gap, RecordGap)
                return self._make(gap)

    def _make(self, gap: RecordGap) -> bool:
        left = (keep_until(None, gap.received_at) - self._clock()).total_seconds()
        timeout = math.ceil(max(left, 0)) + PERSIST_MARGIN
        place = (Kind(gap.where), gap.name)
        job = queues.persist_job(self._redis, *place, timeout=timeout)
        queue = self._gaps.queues[PERSIST_QUEUE]
        keys = [record_key(*place), job.key, queue.key, queue.redis_queues_keys]
        return bool(self._make_job(keys=keys, args=[gap.state, job.id, *queues.fields(job)]))

    def _requeue(self, queue: Queue, job_id: str) -> bool:
        keys = [
            Job.key_for(job_id),
            queue.key,
            queue.intermediate_queue_key,
            queue.started_job_registry.key,
            queue.scheduled_job_registry.key,
            queue.deferred_job_registry.key,
            lost_mark(job_id),
            queue.redis_queues_keys,
        ]
        # One sweep may come a little early.
        args: list[str | float] = [job_id, self._clock().timestamp(), PATIENCE / 2]
        return bool(self._requeue_job(keys=keys, args=args))

    def _list(self, kind: Kind, prediction_id: str) -> bool:
        # The age of the latest change would let the next delivery drop it again.
        keys = [record_key(kind, prediction_id), RECORDS]
        args: list[str | float] = [record_member(kind, prediction_id), self._clock().timestamp()]
        return bool(self._list_record(keys=keys, args=args))

    def _unlist(self, kind: Kind, prediction_id: str) -> bool:
        keys = [record_key(kind, prediction_id), RECORDS]
        return bool(self._unlist_record(keys=keys, args=[record_member(kind, prediction_id)]))


class Refused:
    """Looks at each prediction once: rules change with a restart, so every process looks for itself."""

    def __init__(
        self, redis: Redis, storage: Storage, rules: HostRules, *, ttl: int, clock: Callable[[], datetime]
    ) -> None:
        self._records = Records(redis, ttl=ttl)
        self._sweep = Sweep(redis, ttl=ttl, clock=clock)
        self._storage = storage
        self._rules = rules
        self._clock = clock
        self._seen: set[tuple[Kind, str]] = set()

    def run(self) -> Counter[Repair]:
        """Make a job for each prediction of which something may be fetched now; how many there were.

        Raises redis' errors and what `Storage` raises.
        """
        mended: Counter[Repair] = Counter()
        listed = self._records.refused(self._clock())
        self._seen.intersection_update(listed)
        for place in listed:
            if place in self._seen:
                continue
            manifest = self._storage.read_manifest(*place)
            refused = manifest.refused.values() if manifest else ()
            if any(file.source and self._rules.permits(file.source) for file in refused):
                assert manifest is not None
                gap = RecordGap(Repair.OUTPUT_SOUGHT, *place, State.DISPATCHED, manifest.receipt.received_at)
                if self._sweep.mend(gap):
                    mended[gap.repair] += 1
            self._seen.add(place)
        return mended


class Ends:
    """Over all queues there are: handlers may have named others when the jobs were made."""

    def __init__(self, redis: Redis, storage: Storage) -> None:
        self._redis = redis
        self._storage = storage

    def run(self) -> Counter[Repair]:
        """Write the outcomes that are missing. Raises redis-py's errors and the storage's."""
        for job_id, end in untold(self._redis, telling_queues(self._redis)):
            tell(self._redis, self._storage, job_id, end)
        return Counter()
