"""The ledger of work: the jobs that we hand to RQ, always with every bound set.

Without `timeout` RQ takes a long download for abandoned after 180 s and runs it twice; without `retry`
it drops the job of a killed worker; its default description would log the arguments.
"""

from collections.abc import Sequence

from redis import Redis
from rq import Queue, Retry
from rq.exceptions import DuplicateJobError
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import now
from rq.worker.base import BaseWorker

from app.core.names import (
    NOTIFY_JOB,
    NOTIFY_QUEUE,
    PERSIST_JOB,
    PERSIST_QUEUE,
    Kind,
    notify_job_id,
    persist_job_id,
)

RESULT_TTL = 3600
"""Seconds for which the id of a finished job blocks the same job; records guard for longer."""

FAILURE_TTL = 365 * 86400
NOTIFY_TIMEOUT = 60

_KILLS = Retry(max=20, interval=5)
"""How often a job whose worker died, or that raised, is run again. What fails in an expected way asks for
its next run itself and does not count here."""


def queue(name: str, connection: Redis) -> Queue:
    """A queue of ours: JSON only, since whoever can write a pickle to Redis could run code."""
    return Queue(name, connection=connection, serializer=JSONSerializer)


def persist_job(connection: Redis, kind: Kind, prediction_id: str, *, timeout: int) -> Job:
    """The job that keeps the outputs of one prediction; not saved, so that `Records` can do it atomically.

    `timeout` is how many seconds one run may take.
    """
    job = queue(PERSIST_QUEUE, connection).create_job(
        PERSIST_JOB,
        args=(str(kind), prediction_id),
        job_id=persist_job_id(kind, prediction_id),
        timeout=timeout,
        retry=_KILLS,
        result_ttl=RESULT_TTL,
        failure_ttl=FAILURE_TTL,
        description=f"keep {kind} {prediction_id}",
    )
    job.enqueued_at = now()
    return job


def fields(job: Job) -> Sequence[str | bytes]:
    """The hash of a job as RQ stores it: name, value, name, value, …"""
    return [
        item if isinstance(item, str | bytes) else str(item)
        for pair in job.to_dict().items()
        if pair[1] is not None
        for item in pair
    ]


def enqueue_notify(connection: Redis, handler: str, kind: Kind, prediction_id: str) -> bool:
    """Tell one handler about one prediction; whether the job is new."""
    try:
        queue(NOTIFY_QUEUE, connection).enqueue(
            NOTIFY_JOB,
            args=(handler, str(kind), prediction_id),
            job_id=notify_job_id(handler, kind, prediction_id),
            job_timeout=NOTIFY_TIMEOUT,
            retry=_KILLS,
            result_ttl=RESULT_TTL,
            failure_ttl=FAILURE_TTL,
            description=f"tell {handler} about {kind} {prediction_id}",
            unique=True,
        )
    except DuplicateJobError:
        return False
    return True


def worker_count(name: str, connection: Redis) -> int:
    """How many workers are registered for a queue of ours."""
    count: int = BaseWorker.count(queue=queue(name, connection))
    return count
