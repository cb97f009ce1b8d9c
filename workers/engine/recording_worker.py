"""What RQ is told of each run, in as few steps as it takes: that it begins, that it lives, how it ended."""

import logging
import threading
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.utils import now

from app.clock import Clock
from app.core.errors import OutkeepError
from workers.engine.job import AsyncJob
from workers.engine.steady_worker import Pace, SteadyWorker

log = logging.getLogger("outkeep.worker")


class RecordingWorker(SteadyWorker):
    """Keeps RQ's books of many runs at a time; a subclass runs the jobs."""

    def __init__(
        self, queue: str, *, connection: Redis, name: str | None, pace: Pace, clock: Clock | None = None
    ) -> None:
        super().__init__(queue, connection=connection, name=name, pace=pace, clock=clock)
        self._failing = threading.Lock()
        self._beats = threading.Thread(target=self._beat, name="heartbeats", daemon=True)
        self._ended = threading.Event()

    def start_beats(self) -> None:
        """Send the heartbeats of all executions from now on."""
        self._beats.start()

    def stop_beats(self) -> None:
        """Send no more."""
        self._ended.set()

    def prepare_execution(self, job: Job) -> Execution:
        """Write down that a job starts, and with which execution, in one transaction.

        RQ takes two, and the second from `perform_job`, which comes here only when the job has ended.
        """
        ttl = self.get_heartbeat_ttl(job)
        with self.connection.pipeline() as pipeline:
            execution = Execution.create(job, ttl, pipeline=pipeline, worker_name=self.name)
            self.executions[execution.id] = execution
            job.prepare_for_execution(self.name, pipeline=pipeline)
            pipeline.persist(job.key)
            pipeline.lrem(self.job_queue.intermediate_queue_key, 1, job.id)
            pipeline.execute()
        return execution

    def prepare_job_execution(self, job: Job, remove_from_intermediate_queue: bool = False) -> None:  # noqa: FBT001, FBT002
        """Left to `prepare_execution`."""

    def handle_execution_ended(self, job: Job, queue: Queue, heartbeat_ttl: int) -> None:  # noqa: ARG002
        """Note the time. RQ sends a heartbeat for its callbacks, of which there are none."""
        job.ended_at = now()

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Log what a job raised, with a trace only if it is a fault: our own rules say themselves why."""
        error = exc_info[1]
        if isinstance(job, AsyncJob) and job.stop_asked:
            log.warning("job %s was stopped on request", job.id, extra={"job": job.id})
        elif isinstance(error, RedisError):
            log.warning(
                "job %s has met a Redis that does not serve: %s", job.id, error, extra={"job": job.id}
            )
        elif isinstance(error, OutkeepError):
            facts = {"job": job.id, "code": error.code}
            log.info("job %s has ended for good: %s", job.id, error.message, extra=facts)
        else:
            super().handle_exception(job, *exc_info)

    def handle_job_failure(self, job: Job, *args: Any, **options: Any) -> None:
        """As RQ does: one that was stopped on request is not tried again.

        RQ remembers one such job, of a worker that runs one; here several may end at a time.
        """
        with self._failing:
            self._stopped_job_id = job.id if isinstance(job, AsyncJob) and job.stop_asked else None
            super().handle_job_failure(job, *args, **options)

    def given_up(self, job: AsyncJob, execution: Execution) -> bool:
        """True if maintenance or an operator has taken the job away from this execution.

        A job whose hash is gone as well (Redis came back empty) is written anew instead.
        """
        with self.connection.pipeline() as pipeline:
            pipeline.zscore(job.started_job_registry.key, execution.composite_key)
            pipeline.exists(job.key)
            score, exists = pipeline.execute()
            if score is not None or not exists:
                return False
            self.cleanup_execution(job, pipeline, execution)
            pipeline.execute()
        return True

    def _beat(self) -> None:
        while not self._ended.wait(self.pace.beat):
            for execution in list(self.executions.values()):
                try:
                    self.maintain_heartbeats(execution.job, execution)
                except RedisError as error:
                    log.warning("no heartbeats, running jobs may be started again elsewhere: %s", error)
                    break
