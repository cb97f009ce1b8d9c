"""Our jobs in RQ's queues and registries; run jobs again that have ended there."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError
from rq import Queue
from rq.job import Job, JobStatus
from rq.registry import BaseRegistry
from rq.results import Result
from rq.serializers import JSONSerializer

from app.accept import queues
from app.core.handlers import Handler, job_queues
from app.core.names import (
    HANDLE_QUEUE,
    NOTIFY_QUEUE,
    PERSIST_QUEUE,
    DeliveryRef,
    Kind,
    PredictionRef,
    place_of_job,
    split_handle_job_id,
    split_notify_job_id,
)

LOOKED_AT = 1000
"""Jobs by which it is told what a queue is for."""

ENDED = frozenset({JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED})


@dataclass(frozen=True)
class Backlog:
    """The ids of the jobs of one queue, by where they stand."""

    queued: Sequence[str]
    running: Sequence[str]
    scheduled: Sequence[str]
    failed: Sequence[str]


def backlog(name: str, connection: Redis) -> Backlog:
    """What waits, runs and has failed in a queue of ours, the oldest first."""
    jobs = queues.queue(name, connection)
    return Backlog(
        jobs.job_ids,
        jobs.started_job_registry.get_job_ids(cleanup=False),
        jobs.scheduled_job_registry.get_job_ids(cleanup=False),
        jobs.failed_job_registry.get_job_ids(cleanup=False),
    )


def telling_queues(connection: Redis) -> list[str]:
    """The queues whose jobs tell handlers: `notify`, and those that hold jobs of the user's."""
    names = {queue.name for queue in Queue.all(connection, serializer=JSONSerializer)}
    return [NOTIFY_QUEUE, *sorted(names - {NOTIFY_QUEUE, PERSIST_QUEUE})]


def queues_of_users(handlers: Sequence[Handler], connection: Redis) -> tuple[str, ...]:
    """The queues that hold jobs of the user's: those that handlers name, and those that one did before.

    The latter as long as something waits or runs there, as far as that shows among their first jobs.
    """
    named = job_queues(handlers)
    others = [name for name in telling_queues(connection) if name not in {NOTIFY_QUEUE, HANDLE_QUEUE, *named}]
    left = [name for name in others if any(map(split_handle_job_id, _first_unended(name, connection)))]
    return tuple(sorted({*named, *left}))


def _first_unended(name: str, connection: Redis) -> Iterator[str]:
    """The ids of the first jobs of a queue that have not ended; it may be somebody else's, and long."""
    jobs = queues.queue(name, connection)
    with connection.pipeline(transaction=False) as pipeline:
        pipeline.lrange(jobs.key, 0, LOOKED_AT)
        for registry in (
            jobs.scheduled_job_registry,
            jobs.started_job_registry,
            jobs.deferred_job_registry,
        ):
            pipeline.zrange(registry.key, 0, LOOKED_AT)
        for entries in pipeline.execute():
            for entry in entries:
                yield entry.decode(errors="replace").partition(":")[0]  # <job>:<execution>


def by_delivery(job_ids: Iterable[str]) -> Iterator[tuple[DeliveryRef, str]]:
    """What each job is about that tells a handler, with its id; the ids of other jobs are passed over."""
    for job_id in job_ids:
        ref = split_notify_job_id(job_id) or split_handle_job_id(job_id)
        if ref is not None:
            yield ref, job_id


def handler_counts(connection: Redis) -> tuple[Counter[str], Counter[str]]:
    """How many notifications wait or run for each handler, and how many are dead letters."""
    waiting: Counter[str] = Counter()
    dead: Counter[str] = Counter()
    for name in telling_queues(connection):
        jobs = backlog(name, connection)
        live = [*jobs.queued, *jobs.running, *jobs.scheduled]
        waiting.update(handler for (handler, *_), _ in by_delivery(live))
        dead.update(handler for (handler, *_), _ in by_delivery(jobs.failed))
    return waiting, dead


def replace_persist(connection: Redis, job: Job) -> bool:
    """Enqueue a persist job in the place of one that ended; False when that one has not ended."""
    target = queues.queue(PERSIST_QUEUE, connection)
    with _unchanged(connection, job.id) as (status, pipeline):
        if status is not None and status not in ENDED:
            return False
        target.failed_job_registry.remove(job.id, pipeline=pipeline)
        pipeline.delete(job.key)
        pipeline.hset(job.key, items=list(queues.fields(job)))
        return _push(target, job.id, pipeline)


def hasten(connection: Redis, job_id: str, name: str = NOTIFY_QUEUE) -> bool:
    """Run a job of queue `name` now that waits for its time; False when it does not wait any more."""
    target = queues.queue(name, connection)
    with _unchanged(connection, job_id) as (status, pipeline):
        if status != JobStatus.SCHEDULED:
            return False
        target.scheduled_job_registry.remove(job_id, pipeline=pipeline)
        pipeline.hset(Job.key_for(job_id), "status", JobStatus.QUEUED)
        return _push(target, job_id, pipeline)


@contextmanager
def _unchanged(connection: Redis, job_id: str) -> Iterator[tuple[str | None, Pipeline]]:
    """The status of a job, and a transaction that ends in `WatchError` if anybody else touches the job.

    The hash is not read otherwise: whoever can write to Redis can make it one that RQ cannot read.
    """
    with connection.pipeline() as pipeline:
        pipeline.watch(Job.key_for(job_id))  # type: ignore[no-untyped-call]
        status = cast(bytes | None, pipeline.hget(Job.key_for(job_id), "status"))
        pipeline.multi()
        yield None if status is None else status.decode(errors="replace"), pipeline


def _push(target: Queue, job_id: str, pipeline: Pipeline) -> bool:
    """Carry the transaction out, with the job at the end of its queue; whether nobody was quicker."""
    pipeline.sadd(target.redis_queues_keys, target.key)
    target.push_job_id(job_id, pipeline=pipeline)
    try:
        pipeline.execute()
    except WatchError:
        return False
    return True


def forget_failed(connection: Redis, name: str, job_id: str) -> None:
    """Take a job off the list of those that failed, and forget it: another one has taken its place."""
    with connection.pipeline() as pipeline:
        queues.queue(name, connection).failed_job_registry.remove(job_id, pipeline=pipeline)
        pipeline.delete(Job.key_for(job_id), Result.get_key(job_id))  # type: ignore[no-untyped-call]
        pipeline.execute()


@dataclass(frozen=True)
class Trace:
    """One job. `has_ended` is false for what runs, waits for its time or for a worker."""

    queue: str
    id: str
    runs: bool
    has_ended: bool


class Traces:
    """The jobs of all predictions, read once; raises redis-py's errors."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._found: dict[PredictionRef, dict[str, Trace]] = defaultdict(dict)
        # Ours, and those on which workers of somebody else run jobs for us.
        known = cast(set[bytes], redis.smembers(Queue.redis_queues_keys))
        prefix = Queue.redis_queue_namespace_prefix
        names = {key.decode(errors="replace").removeprefix(prefix) for key in known}
        for name in sorted({PERSIST_QUEUE, NOTIFY_QUEUE, HANDLE_QUEUE} | names):
            for trace in _traces(queues.queue(name, redis)):
                ref = place_of_job(trace.id)
                if ref is not None:
                    self._found[ref].setdefault(trace.id, trace)

    def of(self, kind: Kind, prediction_id: str) -> Sequence[Trace]:
        """The jobs that work, or have worked, on one prediction."""
        return list(self._found.get((kind, prediction_id), {}).values())


def forget(redis: Redis, trace: Trace) -> bool:
    """Let RQ forget a job and its results; False when it runs, which only its end ends."""
    queue = queues.queue(trace.queue, redis)
    with redis.pipeline() as pipeline:
        pipeline.watch(Job.key_for(trace.id))  # type: ignore[no-untyped-call]
        status = cast(bytes | None, pipeline.hget(Job.key_for(trace.id), "status"))
        taken = cast(list[bytes], pipeline.lrange(queue.intermediate_queue_key, 0, -1))
        if trace.runs or status == b"started" or trace.id.encode() in taken:
            return False
        pipeline.multi()
        pipeline.lrem(queue.key, 0, trace.id)
        for registry in _registries(queue):
            pipeline.zrem(registry.key, trace.id)
        results = Result.get_key(trace.id)  # type: ignore[no-untyped-call]
        pipeline.delete(Job.key_for(trace.id), Job.dependents_key_for(trace.id), results)
        try:
            pipeline.execute()
        except WatchError:
            return False
    return True


def _registries(queue: Queue) -> Sequence[BaseRegistry]:
    return (
        queue.scheduled_job_registry,
        queue.deferred_job_registry,
        queue.failed_job_registry,
        queue.finished_job_registry,
        queue.canceled_job_registry,
    )


def _traces(queue: Queue) -> Iterator[Trace]:
    with queue.connection.pipeline(transaction=False) as pipeline:
        pipeline.zrange(queue.started_job_registry.key, 0, -1)
        pipeline.lrange(queue.intermediate_queue_key, 0, -1)
        pipeline.lrange(queue.key, 0, -1)
        for registry in _registries(queue):
            pipeline.zrange(registry.key, 0, -1)
        started, taken, queued, scheduled, deferred, *ended = [
            [entry.decode(errors="replace") for entry in entries] for entries in pipeline.execute()
        ]
    for entry in [*started, *taken]:
        yield Trace(queue.name, entry.partition(":")[0], runs=True, has_ended=False)  # <job>:<execution>
    for entry in [*queued, *scheduled, *deferred]:
        yield Trace(queue.name, entry, runs=False, has_ended=False)
    for entry in [one for entries in ended for one in entries]:
        yield Trace(queue.name, entry, runs=False, has_ended=True)
