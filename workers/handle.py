"""The worker of the queue `handle`: RQ's forking worker, which isolates what users run.

One process watches, and forks another (the work-horse) for each job. What RQ leaves open is closed here: a
work-horse ends with its parent, however that dies, so that a job does not run on beside its second run; and
the job of a killed worker is found after seconds, not minutes.
"""

import os
import signal
from collections.abc import Callable
from typing import Any, ClassVar

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq import Worker
from rq.job import Job
from rq.queue import Queue
from rq.serializers import JSONSerializer

from app import lifeline
from app.core.errors import Permanent
from app.core.names import HANDLE_QUEUE
from workers.guarded_job import GuardedJob
from workers.job_queue import JobQueue
from workers.steady_worker import Pace

PACE = Pace()


class ListedJob(GuardedJob):
    """A job that runs only functions the handlers file names; whoever can write to Redis cannot add one."""

    names: ClassVar[frozenset[str]] = frozenset()

    @property
    def func(self) -> Callable[..., Any]:
        """The function to run; raises `Permanent`, for good, when it is not on the list."""
        if self.func_name not in self.names:
            self.retries_left = 0
            raise Permanent("job_refused", f"{self.func_name!r} is not a job of the handlers file")
        function: Callable[..., Any] = super().func
        return function


class HandleWorker(Worker):
    """RQ's worker, that says every `beat` seconds that it lives and is missed after `silence`."""

    queue_class = JobQueue

    def __init__(self, connection: Redis, names: frozenset[str], pace: Pace) -> None:
        self.pace = pace
        # Only this process holds the writing end: when it dies, the work-horse reads the end of the file.
        self._cut_with_parent, self._held_by_parent = os.pipe()
        super().__init__(
            [HANDLE_QUEUE],
            connection=connection,
            serializer=JSONSerializer,
            job_class=type("ListedJob", (ListedJob,), {"names": names}),
            worker_ttl=pace.worker_ttl,
            maintenance_interval=pace.maintenance,
            job_monitoring_interval=pace.beat,
            log_job_description=False,
        )
        for queue in self.queues:
            assert isinstance(queue, JobQueue)
            queue.stuck_after = pace.stuck

    @property
    def dequeue_timeout(self) -> int:
        """Seconds that taking a job blocks: maintenance comes after it."""
        return self.pace.beat

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:  # noqa: ARG002
        """Say that this worker lives; RQ adds a minute to each of its own time-outs."""
        super().heartbeat(self.pace.worker_ttl, pipeline)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:  # noqa: ARG002
        """Seconds of silence after which a run is given up."""
        return self.pace.silence

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """Wait for a job that can be read; RQ's worker would end at one that cannot."""
        while True:
            try:
                return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
            except RedisError:
                raise
            except Exception as error:
                job_id = getattr(error, "job_id", None)  # RQ attaches it when the hash cannot be read
                if job_id is None:
                    raise
                [queue] = self.queues
                assert isinstance(queue, JobQueue)
                queue.bury(job_id, f"{type(error).__name__}: {error}")

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Fork a work-horse and wait for it."""
        job.origin = queue.name  # what a planted hash says does not count
        super().execute_job(job, queue)

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        """The work-horse: run the job, and end at once with all it has started when the parent is gone."""
        os.close(self._held_by_parent)
        lifeline.watch(_end_group, fd=self._cut_with_parent)
        super().main_work_horse(job, queue)


def worker(connection: Redis, names: frozenset[str], *, pace: Pace = PACE) -> HandleWorker:
    """A worker that runs the functions `names` and no others."""
    return HandleWorker(connection, names, pace)


def _end_group() -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)  # RQ gives each work-horse a group of its own
