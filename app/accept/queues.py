"""The ledger of work: the jobs that we hand to RQ, always with every bound set.

Without `timeout` RQ takes a long download for abandoned after 180 s and runs it twice; without `retry`
it drops the job of a killed worker; its default description would log the arguments.
"""

import itertools
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

from redis import Redis
from rq import Queue, Retry
from rq.exceptions import DuplicateJobError
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.utils import now
from rq.worker.base import BaseWorker

from app.core.handlers import NOTIFY_TIMEOUT, Call
from app.core.names import (
    NOTIFY_JOB,
    NOTIFY_QUEUE,
    PERSIST_JOB,
    PERSIST_QUEUE,
    Kind,
    handle_job_id,
    notify_job_id,
    persist_job_id,
    replay_job_id,
)

RESULT_TTL = 3600
"""Seconds for which the id of a finished job blocks the same job; records guard for longer."""

FAILURE_TTL = 365 * 86400

_KILLS = Retry(max=20, interval=5)
"""How often a job whose worker died, or that raised, is run again. What fails in an expected way asks for
its next run itself and does not count here."""

USERS_RETRIES = 4
"""How often a job of the user's that failed, in whatever way, is run again."""

_USERS = Retry(max=USERS_RETRIES, interval=[5, 60, 300, 1800])

OUTCOME_TTL = 86400
"""Seconds for which a finished job of the user's is known: the sweep must see how it ended."""


class _Job(Job):
    """A job that is always JSON: a serializer handed to RQ is examined anew, a tenth of an acceptance."""

    def __init__(
        self,
        id: str | None = None,  # noqa: A002  # RQ's name
        connection: Redis | None = None,
        serializer: object = None,  # noqa: ARG002
    ) -> None:
        super().__init__(id, connection)
        self.serializer = JSONSerializer


@lru_cache(maxsize=8)  # making one takes RQ longer than making a job
def queue(name: str, connection: Redis) -> Queue:
    """A queue of ours: JSON only, since whoever can write a pickle to Redis could run code."""
    return Queue(name, connection=connection, serializer=JSONSerializer, job_class=_Job)


@lru_cache(maxsize=8)
def keys(name: str, connection: Redis) -> tuple[str, str, str]:
    """What a new job touches besides its own key: its queue, RQ's set of queues, the queue's failed jobs."""
    jobs = queue(name, connection)
    return jobs.key, jobs.redis_queues_keys, jobs.failed_job_registry.key


def persist_job(connection: Redis, kind: Kind, prediction_id: str, *, timeout: int) -> Job:
    """The job that keeps the outputs of one prediction; not saved, so that `Records` can do it atomically.

    `timeout` is how many seconds one run may take.
    """
    return _job(
        queue(PERSIST_QUEUE, connection),
        PERSIST_JOB,
        str(kind),
        prediction_id,
        job_id=persist_job_id(kind, prediction_id),
        timeout=timeout,
        description=f"keep {kind} {prediction_id}",
    )


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as it is written, without RQ's object, which takes longer to make than all else of a delivery."""

    id: str
    origin: str
    fields: Sequence[str | bytes]
    """As `fields` has them."""

    @property
    def key(self) -> str:
        """Of its hash in Redis."""
        return Job.key_for(self.id)


@cache
def _persist_template() -> Sequence[str | bytes]:
    """The fields of a persist job as RQ makes it; what is its own comes last, and replaces these."""
    own = {"created_at", "data", "description", "enqueued_at", "timeout"}
    found = fields(persist_job(Redis(), Kind.PREDICTION, "template", timeout=1))
    pairs = zip(found[::2], found[1::2], strict=True)
    return [item for name, value in pairs if name not in own for item in (name, value)]


def _stored(data: bytes) -> bytes:
    """What `zlib.compress(data, 0)` makes of a few bytes, without its quarter of a megabyte of work space.

    RFC 1950 around one stored block of RFC 1951.
    """
    size = len(data)
    return struct.pack("<HBHH", 0x0178, 1, size, size ^ 0xFFFF) + data + struct.pack(">I", zlib.adler32(data))


def new_persist_job(kind: Kind, prediction_id: str, *, timeout: int, at: datetime) -> NewJob:
    """What `persist_job` makes, at a time of our clock; a test compares the two."""
    time = f"{at.isoformat(timespec='microseconds')[:26]}Z"  # as `rq.utils.utcformat` writes it
    call = f'["{PERSIST_JOB}", null, ["{kind}", "{prediction_id}"], {{}}]'  # an id holds no quote
    own = (
        "created_at", time, "enqueued_at", time, "data", _stored(call.encode()),
        "description", f"keep {kind} {prediction_id}", "timeout", str(timeout),
    )  # fmt: skip
    return NewJob(persist_job_id(kind, prediction_id), PERSIST_QUEUE, (*_persist_template(), *own))


def notify_job(
    connection: Redis,
    handler: str,
    kind: Kind,
    prediction_id: str,
    *,
    job_id: str | None = None,
    timeout: int = NOTIFY_TIMEOUT,
) -> Job:
    """The job that tells one handler about one prediction, not saved; `job_id` is that of the first one.

    `timeout` is the handler's `patience`.
    """
    return _job(
        queue(NOTIFY_QUEUE, connection),
        NOTIFY_JOB,
        handler,
        str(kind),
        prediction_id,
        job_id=job_id or notify_job_id(handler, kind, prediction_id),
        timeout=timeout,
        description=f"tell {handler} about {kind} {prediction_id}",
    )


def handle_job(
    connection: Redis, call: Call, event: Mapping[str, Any], *, handler: str, notify_id: str
) -> Job:
    """The user's job that the notify job `notify_id` hands its event to, not saved."""
    data = event["data"]
    return _job(
        queue(call.queue, connection),
        call.function,
        event,
        job_id=handle_job_id(notify_id),
        timeout=call.timeout,
        description=f"{handler} about {data['kind']} {data['id']}",
        retry=_USERS,
        result_ttl=OUTCOME_TTL,
    )


def _job(
    target: Queue,
    function: str,
    *arguments: str | Mapping[str, Any],
    job_id: str,
    timeout: int,
    description: str,
    retry: Retry = _KILLS,
    result_ttl: int = RESULT_TTL,
) -> Job:
    job = target.create_job(
        function,
        args=arguments,
        job_id=job_id,
        timeout=timeout,
        retry=retry,
        result_ttl=result_ttl,
        failure_ttl=FAILURE_TTL,
        description=description,
    )
    job.enqueued_at = now()
    return job


def fields(job: Job | NewJob) -> Sequence[str | bytes]:
    """The hash of a job as RQ stores it: name, value, name, value, …"""
    if isinstance(job, NewJob):
        return job.fields
    return [
        item if isinstance(item, str | bytes) else str(item)
        for pair in job.to_dict().items()
        if pair[1] is not None
        for item in pair
    ]


def dead_letter(
    connection: Redis, handler: str, kind: Kind, prediction_id: str, told: Mapping[str, Any]
) -> Job:
    """A notify job as it stands among RQ's failed jobs; not saved. `told` is how it ended."""
    job = notify_job(connection, handler, kind, prediction_id)
    job.meta = {"told": dict(told)}
    job._status = JobStatus.FAILED  # noqa: SLF001  # its setter writes to Redis
    return job


def enqueue_notify(
    connection: Redis, handler: str, kind: Kind, prediction_id: str, *, timeout: int = NOTIFY_TIMEOUT
) -> bool:
    """Tell one handler about one prediction; whether the job is new."""
    return enqueue(connection, notify_job(connection, handler, kind, prediction_id, timeout=timeout))


def enqueue_replay(
    connection: Redis, handler: str, kind: Kind, prediction_id: str, *, timeout: int = NOTIFY_TIMEOUT
) -> str:
    """Tell one handler once more, by a job of its own with all attempts before it; the id of the job."""
    ids = (replay_job_id(handler, kind, prediction_id, number) for number in itertools.count(1))
    place = (handler, kind, prediction_id)
    jobs = (notify_job(connection, *place, job_id=job_id, timeout=timeout) for job_id in ids)
    new = next(job for job in jobs if enqueue(connection, job))
    # RQ lists a failed job for longer than it may be known by its hash.
    queue(NOTIFY_QUEUE, connection).failed_job_registry.remove(new.id)
    return new.id


def enqueue(connection: Redis, job: Job) -> bool:
    """Whether RQ did not know the job before, dead letters included."""
    try:
        queue(job.origin, connection).enqueue_job(job, unique=True)
    except DuplicateJobError:
        return False
    return True


def worker_count(name: str, connection: Redis) -> int:
    """How many workers are registered for a queue of ours."""
    count: int = BaseWorker.count(queue=queue(name, connection))
    return count
