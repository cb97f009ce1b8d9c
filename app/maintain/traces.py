"""What RQ holds of predictions, in whatever list and queue, and how it is made to forget."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from redis import Redis
from redis.exceptions import WatchError
from rq import Queue
from rq.job import Job
from rq.registry import BaseRegistry
from rq.results import Result

from app.accept import queues
from app.core.names import HANDLE_QUEUE, NOTIFY_QUEUE, PERSIST_QUEUE, Kind, place_of_job

Place = tuple[Kind, str]


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
        self._found: dict[Place, dict[str, Trace]] = defaultdict(dict)
        for name in _queue_names(redis):
            for trace in _traces(queues.queue(name, redis)):
                place = place_of_job(trace.id)
                if place is not None:
                    self._found[place].setdefault(trace.id, trace)

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


def _queue_names(redis: Redis) -> list[str]:
    """Ours, and those on which workers of somebody else run jobs for us."""
    known = cast(set[bytes], redis.smembers(Queue.redis_queues_keys))
    names = {key.decode(errors="replace").removeprefix(Queue.redis_queue_namespace_prefix) for key in known}
    return sorted({PERSIST_QUEUE, NOTIFY_QUEUE, HANDLE_QUEUE} | names)


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
