"""What has fallen between two steps, as it shows in Redis: the sweep mends it, the doctor names it.

It is read in bulk, and the world moves on meanwhile: whoever acts on a gap has to look again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from redis import Redis
from redis.exceptions import ResponseError
from rq.job import JOB_ID_PATTERN, Job
from rq.queue import Queue
from rq.worker.base import BaseWorker
from rq.worker_registration import get_keys

from app.accept import queues
from app.core.lifecycle import LIVE, Repair, State, record_repair
from app.core.names import (
    HANDLE_QUEUE,
    NOTIFY_QUEUE,
    PERSIST_QUEUE,
    RECORDS,
    Kind,
    persist_job_id,
    record_key,
    record_member,
    split_member,
    split_record_key,
)

PAGE = 1000
PAGES = 50
"""Keys that one look takes in; of more, the next one goes on where this one ended."""

MAX_WAITING = 200_000
"""With more jobs than this in a queue, jobs are not looked for in it: to read it all would take too much."""

_JOB_PREFIX = Job.redis_job_namespace_prefix.encode()
_Place = tuple[Kind, str]


_WORDS = {Repair.JOB_REQUEUED: ("queue", "job"), Repair.WORKER_DROPPED: ("queue", "worker")}


@dataclass(frozen=True)
class Gap:
    """`name` is what it is about: a job or a worker of the queue `where`, else an id of that kind.

    RQ moves some jobs in two steps: only one that was found lost twice is lost.
    """

    repair: Repair
    where: str
    name: str

    @property
    def facts(self) -> dict[str, str]:
        """What a log line says of it."""
        words = _WORDS.get(self.repair, ("kind", "id"))
        return dict(zip(words, (self.where, self.name), strict=True))


@dataclass(frozen=True)
class RecordGap(Gap):
    """A prediction without a job, with a job that gave up, or missing in the index."""

    state: State
    received_at: datetime


class Gaps:
    """Looks for gaps and changes nothing. `ttl` is how long records live, in seconds.

    `users` are queues beside ours that hold jobs of the user's.
    """

    def __init__(
        self, redis: Redis, *, ttl: int, clock: Callable[[], datetime], users: Sequence[str] = ()
    ) -> None:
        self._redis = redis
        self._ttl = ttl
        self._clock = clock
        names = {PERSIST_QUEUE, NOTIFY_QUEUE, HANDLE_QUEUE, *users}
        self.queues = {name: queues.queue(name, redis) for name in sorted(names)}
        self._cursor = 0

    def look(self) -> Iterator[Gap]:
        """All gaps among the keys whose turn it is; raises redis' errors."""
        placed = {name: _placed(queue) for name, queue in self.queues.items()}
        for keys in self._turn():
            yield from self._records(list(_records_among(keys)))
            yield from self._jobs([key for key in keys if _is_job(key)], placed)
        yield from self._index()
        yield from self._registrations()

    def _turn(self) -> Iterator[Sequence[bytes]]:
        for _ in range(PAGES):
            self._cursor, keys = self._redis.scan(self._cursor, count=PAGE)
            yield cast(list[bytes], keys)
            if self._cursor == 0:
                return

    def _records(self, places: Sequence[_Place]) -> Iterator[RecordGap]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for place in places:
                pipeline.hmget(record_key(*place), "state", "updated_at", "received_at")
                pipeline.hget(Job.key_for(persist_job_id(*place)), "status")
                pipeline.zscore(RECORDS, record_member(*place))
            answers = pipeline.execute(raise_on_error=False)  # a key of another type
        for place, record, status, score in zip(
            places, answers[0::3], answers[1::3], answers[2::3], strict=True
        ):
            seen = None if isinstance(record, ResponseError) else _seen(record)
            if seen is None:
                continue
            state, updated_at, received_at = seen
            if score is None:
                yield RecordGap(Repair.RECORD_LISTED, *place, state, received_at)
            silent = (self._clock() - updated_at).total_seconds()
            repair = record_repair(state, status.decode() if status else None, silent=silent)
            if repair is not None:
                yield RecordGap(repair, *place, state, received_at)

    def _jobs(self, keys: Sequence[bytes], placed: Mapping[str, frozenset[str] | None]) -> Iterator[Gap]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hmget(key.decode(), "status", "origin")
            answers = pipeline.execute(raise_on_error=False)  # a key of another type
        for key, answer in zip(keys, answers, strict=True):
            if isinstance(answer, ResponseError):
                continue
            status, name = ((field or b"").decode(errors="replace") for field in answer)
            job_id = key[len(_JOB_PREFIX) :].decode()
            known = placed.get(name)
            if status in LIVE and known is not None and job_id not in known:
                yield Gap(Repair.JOB_REQUEUED, name, job_id)

    def _index(self) -> Iterator[Gap]:
        expired = self._clock().timestamp() - self._ttl
        members = cast(list[bytes], self._redis.zrangebyscore(RECORDS, "-inf", expired, start=0, num=PAGE))
        places = [split_member(member.decode()) for member in members]
        with self._redis.pipeline(transaction=False) as pipeline:
            for place in places:
                pipeline.exists(record_key(*place))
            answers = pipeline.execute()
        for (kind, prediction_id), exists in zip(places, answers, strict=True):
            if not exists:
                yield Gap(Repair.RECORD_UNLISTED, kind, prediction_id)

    def _registrations(self) -> Iterator[Gap]:
        for name, queue in self.queues.items():
            keys = sorted(get_keys(queue))
            with self._redis.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.exists(key)
                answers = pipeline.execute()
            for key, exists in zip(keys, answers, strict=True):
                if not exists:
                    worker = key.removeprefix(BaseWorker.redis_worker_namespace_prefix)
                    yield Gap(Repair.WORKER_DROPPED, name, worker)


def _seen(record: Sequence[bytes | None]) -> tuple[State, datetime, datetime] | None:
    """State, latest change and receipt; None for what has expired meanwhile, and what we did not write."""
    state, *times = [(field or b"").decode(errors="replace") for field in record]
    try:
        updated_at, received_at = map(datetime.fromisoformat, times)
        return State(state), updated_at, received_at
    except ValueError:
        return None


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
