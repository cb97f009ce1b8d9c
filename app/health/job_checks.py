"""What Redis tells readiness and the doctor about workers and jobs.

`users` are the queues that hold jobs of the user's. All raise redis' errors.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import cast

from redis import Redis
from rq.job import Job
from rq.scheduler import RQScheduler
from rq.suspension import WORKERS_SUSPENDED
from rq.worker.base import BaseWorker

from app.accept import queues
from app.core import job_findings as rules
from app.core.findings import Finding, Level
from app.core.job_findings import OURS, UNTOLD_AFTER
from app.core.names import NOTIFY_QUEUE, PERSIST_QUEUE
from app.maintain.user_jobs import untold


def workers(redis: Redis, users: Sequence[str], now: datetime) -> Iterator[Finding]:
    """Whether every queue that is needed is served."""
    if redis.exists(WORKERS_SUSPENDED):
        yield Finding(Level.FAIL, "workers", "all are suspended; `rq resume` lets them go on")
    for name in (PERSIST_QUEUE, NOTIFY_QUEUE, *users):
        registered = BaseWorker.all(queue=queues.queue(name, redis))
        heard = [worker.last_heartbeat for worker in registered if worker.last_heartbeat]
        yield rules.workers(name, [(now - at).total_seconds() for at in heard])


def scheduler(redis: Redis, users: Sequence[str] = ()) -> Finding:
    """Whether delayed retries are started."""
    idle = [name for name in _all(users) if not redis.exists(RQScheduler.get_locking_key(name))]
    if idle:
        detail = f"none for {', '.join(idle)}: delayed retries do not start; the workers of "
        detail += f"{PERSIST_QUEUE} and {NOTIFY_QUEUE} bring one"
        return Finding(Level.FAIL, "scheduler", detail)
    return Finding(Level.OK, "scheduler", "running")


def ages(redis: Redis, now: datetime, users: Sequence[str] = ()) -> Iterator[Finding]:
    """How long work has waited, queue by queue."""
    for name in _all(users):
        queue = queues.queue(name, redis)
        yield rules.waiting(name, queue.count, _waited(redis, queue.key, now))
        if name == PERSIST_QUEUE and (put_off := queue.scheduled_job_registry.get_job_count(cleanup=False)):
            yield rules.put_off(put_off)


def dead_letters(redis: Redis, users: Sequence[str]) -> Iterator[Finding]:
    """How many jobs have failed for good, queue by queue."""
    for name in _all(users):
        registry = queues.queue(name, redis).failed_job_registry
        yield rules.dead_letters(name, registry.get_job_count(cleanup=False))


def untold_ends(redis: Redis, users: Sequence[str], now: datetime) -> Iterator[Finding]:
    """Whether it is told how the jobs of the user's ended; nothing where there are none."""
    if users:
        found = [job_id for job_id, end in untold(redis, users) if end.age(now) >= UNTOLD_AFTER]
        yield rules.untold(found)


def _all(users: Sequence[str]) -> tuple[str, ...]:
    """Our queues, and those that users work off themselves."""
    return (*OURS, *(name for name in users if name not in OURS))


def _waited(redis: Redis, queue_key: str, now: datetime) -> float:
    """For how many seconds the first job of a queue has stood there."""
    first = cast(bytes | None, redis.lindex(queue_key, 0))
    with suppress(ValueError):  # whoever can write to Redis can write anything
        since = redis.hget(Job.key_for(first.decode()), "enqueued_at") if first else None
        if since is not None:
            return (now - datetime.fromisoformat(cast(bytes, since).decode())).total_seconds()
    return 0.0
