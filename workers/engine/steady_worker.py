"""RQ's worker without a way to run jobs: one queue, reports in good order, and no end because Redis is away.

RQ's loop ends at any exception, calls Redis from signal handlers and sends up to ten heartbeats for each job.
Here a signal sets a flag, one pipeline a second says all there is to say, and errors of Redis are waited out.
"""

import logging
import os
import signal
import threading
import time
from dataclasses import dataclass
from types import FrameType
from uuid import uuid4

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq import worker_registration
from rq.exceptions import DequeueTimeout, StopRequested
from rq.job import Job
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.suspension import WORKERS_SUSPENDED
from rq.worker.base import WorkerStatus

from app.clock import Clock
from app.up.wakeups import ECHO
from workers.engine.job import AsyncJob, NoDeathPenalty
from workers.engine.job_queue import JobQueue
from workers.engine.patient_worker import Outage, PatientWorker, own_client

log = logging.getLogger("outkeep.worker")


@dataclass(frozen=True)
class Pace:
    """How often a worker says that it lives, and when others believe that it died. All in seconds.

    beat: between heartbeats of executions. silence: after which an execution is given up.
    maintenance: between RQ's clean-ups. stuck: after which a taken job that was never begun comes back.
    worker_ttl: after which the registration of a silent worker goes.
    """

    beat: int = 5
    silence: int = 15
    maintenance: int = 10
    stuck: float = 10
    worker_ttl: int = 30


class SteadyWorker(PatientWorker):
    """Takes jobs of one queue one by one; a subclass runs them.

    Only the address of `connection` is used: RQ changes the socket time-out of the pool that it is given, so
    the worker makes its own. Redis must answer now; the constructor raises redis' ConnectionError.
    """

    job_class = AsyncJob
    queue_class = JobQueue
    death_penalty_class = NoDeathPenalty
    log_result_lifespan = False

    def __init__(
        self, queue: str, *, connection: Redis, name: str | None, pace: Pace, clock: Clock | None = None
    ) -> None:
        _keep_rq_from_printing()
        super().__init__(
            [queue],
            name=name or f"{queue}-{uuid4().hex[:12]}",
            connection=own_client(connection),
            maintenance_interval=pace.maintenance,
            worker_ttl=pace.worker_ttl,
            job_monitoring_interval=pace.beat,
            log_job_description=False,
            serializer=JSONSerializer,
        )
        own = self.queues[0]
        assert isinstance(own, JobQueue)
        own.stuck_after = pace.stuck
        self.pace = pace
        self.silence = pace.silence
        self.clock = clock or Clock()
        self.outage = Outage()
        self._deaf = threading.Event()
        self.job_queue = own
        self._stopping_since: float | None = None  # no Event: a signal handler must not wait for a lock
        self._reported_at = 0.0
        self._suspended = False

    @property
    def stopping(self) -> bool:
        """True after the first signal."""
        return self._stopping_since is not None

    def request_stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """First signal: only a flag. RQ talks to Redis here and may raise in the middle of taking a job."""
        self._stopping_since = time.monotonic()
        signal.signal(signal.SIGINT, self.request_force_stop)
        signal.signal(signal.SIGTERM, self.request_force_stop)

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Second signal: the end, with status 1."""
        if self._stopping_since is not None and time.monotonic() - self._stopping_since >= ECHO:
            os._exit(1)

    @property
    def dequeue_timeout(self) -> int:
        """Seconds that taking a job blocks; a signal is seen after that."""
        return 1

    @property
    def connection_timeout(self) -> int:
        """Seconds after which a silent Redis is an error."""
        return 5

    def ready(self) -> bool:
        """Report and clean up where due; False when no job may be taken now, after waiting for a second."""
        if time.monotonic() - self._reported_at >= 1:
            try:
                self._report()
            except RedisError as error:
                self._wait_for_redis(error)
                return False
        if self.should_run_maintenance_tasks:
            self.run_maintenance_tasks()
        if self._suspended or self.clock.is_far_off:
            time.sleep(1)
            return False
        return True

    def take(self, timeout: int | None) -> tuple[Job, Queue] | None:
        """Take one job, waiting up to `timeout` seconds; None if there is none. Raises nothing.

        A job that arrives after the signal goes back, and one that cannot be read goes to the failed jobs.
        """
        try:
            job = self.job_queue.take(timeout)
            if job and self.stopping:
                self.job_queue.give_back(job.id)
                return None
        except DequeueTimeout:
            return None
        except RedisError as error:
            self._wait_for_redis(error)
            return None
        except Exception as error:  # noqa: BLE001  # a planted hash can be wrong in any way
            self._bury(error)
            return None
        return (job, self.job_queue) if job else None

    def _bury(self, error: Exception) -> None:
        job_id = getattr(error, "job_id", None)  # RQ attaches it when the hash cannot be read
        try:
            if job_id is None:
                log.error("queue %s held no job id: %s", self.job_queue.name, error)
                self.job_queue.intermediate_queue.drop_what_is_no_text()
            else:
                self.job_queue.bury(job_id, f"{type(error).__name__}: {error}")
        except RedisError as outage:
            self._wait_for_redis(outage)

    def _report(self) -> None:
        """Tell Redis that this worker lives and what it does, learn whether workers are suspended.

        Everything is written anew each time: a Redis that comes back empty has forgotten this worker.
        """
        state = WorkerStatus.BUSY if self.executions else WorkerStatus.IDLE
        with self.connection.pipeline() as pipeline:
            self.heartbeat(pipeline=pipeline)
            pipeline.hset(self.key, mapping=self.serialize())
            self.set_state(WorkerStatus.SUSPENDED if self._suspended else state, pipeline=pipeline)
            worker_registration.register(self, pipeline)
            pipeline.exists(WORKERS_SUSPENDED)
            self._suspended = bool(pipeline.execute()[-1])
        self._reported_at = time.monotonic()
        self.outage.ends()

    def _wait_for_redis(self, error: RedisError) -> None:
        self.outage.begins(error)
        self._reported_at = 0.0
        time.sleep(1)

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:  # noqa: ARG002
        """Add the worker's heartbeat to a pipeline; RQ's calls without one are left to `_report`."""
        if pipeline is not None:
            super().heartbeat(self.pace.worker_ttl, pipeline)

    def subscribe(self) -> None:
        """Listen to RQ's commands in a thread."""
        self._listening = threading.Thread(target=self._listen, name="commands", daemon=True)
        self._listening.start()

    def unsubscribe(self) -> None:
        """Listen no more."""
        self._deaf.set()
        self._listening.join(timeout=2)

    def _listen(self) -> None:
        while not self._deaf.is_set():
            self.commands.obey(timeout=1)
        self.commands.close()

    def check_for_suspension(self, burst: bool) -> None:  # noqa: FBT001
        """Left to `_report`: once a second, not before each job."""
        if burst and self._suspended:
            raise StopRequested

    def procline(self, message: str) -> None:
        """The title of the process stays what it is."""


def _keep_rq_from_printing() -> None:
    """RQ's loggers add handlers that print unless they find one; what they say goes up to the root."""
    logger = logging.getLogger("rq")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
