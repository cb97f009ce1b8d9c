"""Inconsistencies in Redis, and their repair: records without a job, jobs in no list, workers that are dead.

Keys are read in bulk, and may have changed since. So each repair is a script in Redis that looks again and
repairs in one step. Repairs may run twice, at the same time, and be killed anywhere.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from redis import Redis
from redis.exceptions import ResponseError
from rq.job import JOB_ID_PATTERN, Job
from rq.queue import Queue
from rq.worker.base import BaseWorker
from rq.worker_registration import clean_worker_registry, get_keys

from app.accept import queues
from app.accept.record_scripts import ENQUEUE
from app.accept.records import Records
from app.core.hosts import HostRules
from app.core.lifecycle import LIVE, PATIENCE, Move, Repair, State, record_repair
from app.core.names import (
    HANDLE_QUEUE,
    NOTIFY_QUEUE,
    PERSIST_QUEUE,
    RECORDS,
    Kind,
    lost_mark,
    persist_job_id,
    record_key,
    record_member,
    split_member,
    split_record_key,
)
from app.core.policy import PERSIST_MARGIN, keep_until
from app.storage.store import Storage

PAGE = 1000
PAGES = 50
"""Keys that one run takes in; of more, the next one goes on where this one ended."""

MAX_WAITING = 200_000
"""With more jobs than this in a queue, jobs are not looked for in it: to read it all would take too much."""

MAKE_JOB = (
    ENQUEUE
    + """
-- KEYS: 1 record, 2 job, 3 queue of the job, 4 RQ's set of queues
-- ARGV: 1 state that the record must have, 2 job id, then the fields of the job
local status = redis.call('HGET', KEYS[2], 'status')
if redis.call('HGET', KEYS[1], 'state') ~= ARGV[1] or LIVE[status] then return 0 end
redis.call('DEL', KEYS[2])
enqueue(KEYS[2], KEYS[3], KEYS[4], ARGV[2], 3, #ARGV)
return 1
"""
)

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

_JOB_PREFIX = Job.redis_job_namespace_prefix.encode()

log = logging.getLogger("outkeep.sweep")


@dataclass(frozen=True)
class Inconsistency:
    """`name` is what it is about: a job or a worker of the queue `where`, else an id of that kind.

    `state` and `received_at` are those of its record, if one leads here.
    """

    repair: Repair
    where: str
    name: str
    state: State | None = None
    received_at: datetime | None = None

    @property
    def facts(self) -> dict[str, str]:
        """What a log line says of it."""
        words = {Repair.JOB_REQUEUED: ("queue", "job"), Repair.WORKER_DROPPED: ("queue", "worker")}
        return dict(zip(words.get(self.repair, ("kind", "id")), (self.where, self.name), strict=True))


class Consistency:
    """Finds and repairs what is inconsistent in Redis. `ttl` is how long records live, in seconds.

    `users` are queues beside ours that hold jobs of the user's. Methods raise redis-py's errors.
    """

    def __init__(
        self, redis: Redis, *, ttl: int, clock: Callable[[], datetime], users: Sequence[str] = ()
    ) -> None:
        self._redis = redis
        self._ttl = ttl
        self._clock = clock
        names = {PERSIST_QUEUE, NOTIFY_QUEUE, HANDLE_QUEUE, *users}
        self._queues = {name: queues.queue(name, redis) for name in sorted(names)}
        self._records = Records(redis, ttl=ttl)
        self._cursor = 0
        self._make_job = redis.register_script(MAKE_JOB)
        self._requeue_job = redis.register_script(REQUEUE_JOB)
        self._list_record = redis.register_script(LIST_RECORD)
        self._unlist_record = redis.register_script(UNLIST_RECORD)

    def run(self) -> Counter[Repair]:
        """Repair what is wrong among the keys whose turn it is; how often which repair was made."""
        return Counter(one.repair for one in self.dry_run() if self.repair(one))

    def dry_run(self) -> Iterator[Inconsistency]:
        """What is wrong among the keys whose turn it is.

        RQ moves some jobs in two steps: only a job that is found lost twice is lost.
        """
        listed = {name: _listed(queue) for name, queue in self._queues.items()}
        for _ in range(PAGES):
            self._cursor, found = self._redis.scan(self._cursor, count=PAGE)
            keys = cast(list[bytes], found)
            yield from self._in_records([ref for ref in map(split_record_key, keys) if ref is not None])
            yield from self._in_jobs([key for key in keys if _is_job(key)], listed)
            if self._cursor == 0:
                break
        yield from self._in_index()
        yield from self._in_registrations()

    def _in_records(self, refs: Sequence[tuple[Kind, str]]) -> Iterator[Inconsistency]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for ref in refs:
                pipeline.hmget(record_key(*ref), "state", "updated_at", "received_at")
                pipeline.hget(Job.key_for(persist_job_id(*ref)), "status")
                pipeline.zscore(RECORDS, record_member(*ref))
            answers = pipeline.execute(raise_on_error=False)  # a key of another type
        for ref, record, status, score in zip(refs, answers[0::3], answers[1::3], answers[2::3], strict=True):
            seen = None if isinstance(record, ResponseError) else _seen(record)
            if seen is None:
                continue
            state, updated_at, received_at = seen
            if score is None:
                yield Inconsistency(Repair.RECORD_LISTED, *ref, state, received_at)
            silent = (self._clock() - updated_at).total_seconds()
            repair = record_repair(state, status.decode() if status else None, silent=silent)
            if repair is not None:
                yield Inconsistency(repair, *ref, state, received_at)

    def _in_jobs(
        self, keys: Sequence[bytes], listed: Mapping[str, frozenset[str] | None]
    ) -> Iterator[Inconsistency]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hmget(key.decode(), "status", "origin")
            answers = pipeline.execute(raise_on_error=False)  # a key of another type
        for key, answer in zip(keys, answers, strict=True):
            if isinstance(answer, ResponseError):
                continue
            status, name = ((field or b"").decode(errors="replace") for field in answer)
            job_id = key[len(_JOB_PREFIX) :].decode()
            known = listed.get(name)
            if status in LIVE and known is not None and job_id not in known:
                yield Inconsistency(Repair.JOB_REQUEUED, name, job_id)

    def _in_index(self) -> Iterator[Inconsistency]:
        expired = self._clock().timestamp() - self._ttl
        members = cast(list[bytes], self._redis.zrangebyscore(RECORDS, "-inf", expired, start=0, num=PAGE))
        refs = [split_member(member.decode()) for member in members]
        exist = self._exist([record_key(*ref) for ref in refs])
        yield from (
            Inconsistency(Repair.RECORD_UNLISTED, *ref)
            for ref, exists in zip(refs, exist, strict=True)
            if not exists
        )

    def _in_registrations(self) -> Iterator[Inconsistency]:
        for name, queue in self._queues.items():
            keys = sorted(get_keys(queue))
            for key, exists in zip(keys, self._exist(keys), strict=True):
                if not exists:
                    worker = key.removeprefix(BaseWorker.redis_worker_namespace_prefix)
                    yield Inconsistency(Repair.WORKER_DROPPED, name, worker)

    def _exist(self, keys: Sequence[str]) -> list[int]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.exists(key)
            return pipeline.execute()

    def repair(self, one: Inconsistency) -> bool:
        """Repair it, and say so; whether it was still there."""
        if not self._repair(one):
            return False
        log.warning("repaired: %s", one.repair, extra={"repair": str(one.repair), **one.facts})
        return True

    def _repair(self, one: Inconsistency) -> bool:
        if one.repair is Repair.JOB_REQUEUED:
            return self._requeue(self._queues[one.where], one.name)
        if one.repair is Repair.WORKER_DROPPED:
            clean_worker_registry(self._queues[one.where])
            return True
        ref = (Kind(one.where), one.name)
        keys, member = [record_key(*ref), RECORDS], record_member(*ref)
        match one.repair:
            case Repair.RECORD_LISTED:
                # With the age of its latest change the next delivery could drop it again.
                return bool(self._list_record(keys=keys, args=[member, self._clock().timestamp()]))
            case Repair.RECORD_UNLISTED:
                return bool(self._unlist_record(keys=keys, args=[member]))
            case Repair.RECORD_FAILED:
                return self._records.move(*ref, Move.FAIL, self._clock(), {"error": "job_failed"})
        assert one.state is not None and one.received_at is not None  # noqa: PT018
        left = (keep_until(None, one.received_at) - self._clock()).total_seconds()
        job = queues.persist_job(self._redis, *ref, timeout=math.ceil(max(left, 0)) + PERSIST_MARGIN)
        queue = self._queues[PERSIST_QUEUE]
        keys = [record_key(*ref), job.key, queue.key, queue.redis_queues_keys]
        return bool(self._make_job(keys=keys, args=[one.state, job.id, *queues.fields(job)]))

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


def _seen(record: Sequence[bytes | None]) -> tuple[State, datetime, datetime] | None:
    """State, latest change and receipt; None for what has expired meanwhile, and what we did not write."""
    state, *times = [(field or b"").decode(errors="replace") for field in record]
    try:
        updated_at, received_at = map(datetime.fromisoformat, times)
        return State(state), updated_at, received_at
    except ValueError:
        return None


def _is_job(key: bytes) -> bool:
    if not key.startswith(_JOB_PREFIX):
        return False
    return JOB_ID_PATTERN.fullmatch(key[len(_JOB_PREFIX) :].decode(errors="replace")) is not None


def _listed(queue: Queue) -> frozenset[str] | None:
    """The ids of all jobs that RQ will find in its lists; None when there are too many to look."""
    connection = queue.connection
    if connection.llen(queue.key) > MAX_WAITING:
        return None
    with connection.pipeline(transaction=False) as pipeline:
        pipeline.lrange(queue.key, 0, -1)
        pipeline.lrange(queue.intermediate_queue_key, 0, -1)
        pipeline.zrange(queue.scheduled_job_registry.key, 0, -1)
        pipeline.zrange(queue.deferred_job_registry.key, 0, -1)
        pipeline.zrange(queue.started_job_registry.key, 0, -1)
        found = pipeline.execute()
    # RQ names a started run <job>:<execution>.
    return frozenset(
        entry.decode(errors="replace").partition(":")[0] for entries in found for entry in entries
    )


class RefusedOutputs:
    """Outputs that the rules refused and permit now: rules change with a restart, so every process looks.

    It looks at each prediction once.
    """

    def __init__(
        self,
        consistency: Consistency,
        records: Records,
        storage: Storage,
        rules: HostRules,
        *,
        clock: Callable[[], datetime],
    ) -> None:
        self._consistency = consistency
        self._records = records
        self._storage = storage
        self._rules = rules
        self._clock = clock
        self._seen: set[tuple[Kind, str]] = set()

    def run(self) -> Counter[Repair]:
        """Make a job for each prediction of which something may be fetched now; how many there were.

        Raises redis-py's errors and what `Storage` raises.
        """
        repaired: Counter[Repair] = Counter()
        refused_refs = self._records.refused(self._clock())
        self._seen.intersection_update(refused_refs)
        for ref in refused_refs:
            if ref in self._seen:
                continue
            manifest = self._storage.read_manifest(*ref)
            refused = manifest.refused.values() if manifest else ()
            if any(file.source and self._rules.permits(file.source) for file in refused):
                assert manifest is not None
                received_at = manifest.receipt.received_at
                one = Inconsistency(Repair.OUTPUT_SOUGHT, *ref, State.DISPATCHED, received_at)
                repaired[one.repair] += self._consistency.repair(one)
            self._seen.add(ref)
        return repaired
