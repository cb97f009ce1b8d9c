"""Mend what fell between two steps: everything that waits has a job, and every job stands where RQ finds it.

The sweep does not act on what it read: it reads in bulk what looks wrong, then a script in Redis looks again
and mends in one step. So it may run twice, at the same time, and die anywhere.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from redis import Redis
from redis.exceptions import ResponseError
from rq.job import JOB_ID_PATTERN, Job
from rq.queue import Queue
from rq.worker_registration import clean_worker_registry

from app import queues
from app.core.lifecycle import Move, State
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
from app.core.repairs import LIVE, PATIENCE, Repair, record_repair
from app.records import Records
from workers.sweep_scripts import LIST_RECORD, MAKE_JOB, REQUEUE_JOB, UNLIST_RECORD

PAGE = 1000
PAGES = 50
"""Keys that one sweep looks at; of more, the next sweep goes on where this one ended."""

MAX_WAITING = 200_000
"""With more jobs than this in a queue, jobs are not looked for in it: to read it all would take too much."""

_JOB_PREFIX = Job.redis_job_namespace_prefix.encode()
_Place = tuple[Kind, str]

log = logging.getLogger("outkeep.sweep")


@dataclass(frozen=True)
class _Seen:
    """What the sweep reads of a record."""

    state: State
    updated_at: datetime
    received_at: datetime


class Sweep:
    """The half of the sweep that looks at Redis. `ttl` is how long records live, in seconds."""

    def __init__(self, redis: Redis, *, ttl: int, clock: Callable[[], datetime]) -> None:
        self._redis = redis
        self._records = Records(redis, ttl=ttl)
        self._ttl = ttl
        self._clock = clock
        self._queues = {
            name: queues.queue(name, redis) for name in (PERSIST_QUEUE, NOTIFY_QUEUE, HANDLE_QUEUE)
        }
        self._cursor = 0
        self._make_job = redis.register_script(MAKE_JOB)
        self._requeue_job = redis.register_script(REQUEUE_JOB)
        self._list_record = redis.register_script(LIST_RECORD)
        self._unlist_record = redis.register_script(UNLIST_RECORD)

    def run(self) -> Counter[Repair]:
        """Mend what is wrong; how often which repair was made. Raises redis' errors."""
        mended: Counter[Repair] = Counter()
        placed = {name: _placed(queue) for name, queue in self._queues.items()}
        for keys in self._turn():
            mended.update(self._mend_records(list(_records_among(keys))))
            mended.update(self._mend_jobs([key for key in keys if _is_job(key)], placed))
        mended.update(self._mend_index())
        mended.update(self._mend_registrations())
        return mended

    def _turn(self) -> Iterator[Sequence[bytes]]:
        for _ in range(PAGES):
            self._cursor, keys = self._redis.scan(self._cursor, count=PAGE)
            yield cast(list[bytes], keys)
            if self._cursor == 0:
                return

    def _mend_records(self, places: Sequence[_Place]) -> Iterator[Repair]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for place in places:
                pipeline.hmget(record_key(*place), "state", "updated_at", "received_at")
                pipeline.hget(self._job_key(place), "status")
                pipeline.zscore(RECORDS, record_member(*place))
            answers = pipeline.execute(raise_on_error=False)  # a key of another type
        for place, record, status, score in zip(
            places, answers[0::3], answers[1::3], answers[2::3], strict=True
        ):
            seen = None if isinstance(record, ResponseError) else _seen(record)
            if seen is None:
                continue
            if score is None and self._list(place):
                yield _said(Repair.RECORD_LISTED, kind=place[0], id=place[1])
            silent = (self._clock() - seen.updated_at).total_seconds()
            repair = record_repair(seen.state, status.decode() if status else None, silent=silent)
            if repair and self._settle(repair, place, seen):
                yield _said(repair, kind=place[0], id=place[1])

    def _settle(self, repair: Repair, place: _Place, seen: _Seen) -> bool:
        if repair is Repair.RECORD_FAILED:
            return self._records.move(*place, Move.FAIL, self._clock(), {"error": "job_failed"})
        left = (keep_until(None, seen.received_at) - self._clock()).total_seconds()
        timeout = math.ceil(max(left, 0)) + PERSIST_MARGIN
        job = queues.persist_job(self._redis, *place, timeout=timeout)
        queue = self._queues[PERSIST_QUEUE]
        keys = [record_key(*place), job.key, queue.key, queue.redis_queues_keys]
        return bool(self._make_job(keys=keys, args=[seen.state, job.id, *queues.fields(job)]))

    def _mend_jobs(
        self, keys: Sequence[bytes], placed: Mapping[str, frozenset[str] | None]
    ) -> Iterator[Repair]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hmget(key.decode(), "status", "origin")
            answers = pipeline.execute(raise_on_error=False)  # a key of another type
        for key, answer in zip(keys, answers, strict=True):
            if isinstance(answer, ResponseError):
                continue
            status, name = ((field or b"").decode(errors="replace") for field in answer)
            job_id = key[len(_JOB_PREFIX) :].decode()
            if status not in LIVE:
                continue
            known = placed.get(name)
            if known is not None and job_id not in known and self._requeue(self._queues[name], job_id):
                yield _said(Repair.JOB_REQUEUED, queue=name, job=job_id)

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

    def _mend_index(self) -> Iterator[Repair]:
        expired = self._clock().timestamp() - self._ttl
        members = cast(list[bytes], self._redis.zrangebyscore(RECORDS, "-inf", expired, start=0, num=PAGE))
        for member in members:
            kind, prediction_id = split_member(member.decode())
            keys = [record_key(kind, prediction_id), RECORDS]
            if self._unlist_record(keys=keys, args=[member]):
                yield _said(Repair.RECORD_UNLISTED, kind=kind, id=prediction_id)

    def _mend_registrations(self) -> Iterator[Repair]:
        for name, queue in self._queues.items():
            before = queues.worker_count(name, self._redis)
            clean_worker_registry(queue)
            for _ in range(before - queues.worker_count(name, self._redis)):
                yield _said(Repair.WORKER_DROPPED, queue=name)

    def _list(self, place: _Place) -> bool:
        # The age of the latest change would let the next delivery drop it again.
        keys = [record_key(*place), RECORDS]
        now = self._clock().timestamp()
        return bool(self._list_record(keys=keys, args=[record_member(*place), now]))

    def _job_key(self, place: _Place) -> str:
        return Job.key_for(persist_job_id(*place))


def _seen(record: Sequence[bytes | None]) -> _Seen | None:
    """None for what has expired meanwhile, and for what no code of ours has written."""
    state, *times = [(field or b"").decode(errors="replace") for field in record]
    try:
        return _Seen(State(state), *map(datetime.fromisoformat, times))
    except ValueError:
        return None


def _said(repair: Repair, **facts: str) -> Repair:
    log.warning("mended: %s", repair, extra={"repair": str(repair), **facts})
    return repair


def _records_among(keys: Iterable[bytes]) -> Iterator[_Place]:
    for key in keys:
        place = split_record_key(key)
        if place is not None:
            yield place


def _is_job(key: bytes) -> bool:
    if not key.startswith(_JOB_PREFIX):
        return False
    return JOB_ID_PATTERN.fullmatch(key[len(_JOB_PREFIX) :].decode(errors="replace")) is not None


def _placed(queue: Queue) -> frozenset[str] | None:
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
