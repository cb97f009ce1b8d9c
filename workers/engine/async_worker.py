"""An RQ worker for one queue that runs coroutine jobs, many at a time, on one event loop.

The main thread takes jobs, one for each free slot. Pool threads do RQ's bookkeeping before a job (begin) and
after it (finish: RQ's own `perform_job`, given the outcome of the task that has ended). One thread runs the
loop, one sends the heartbeats of all executions, one is the scheduler. Nothing forks.

When a process dies, its executions fall silent and RQ's maintenance in any other worker of the queue, or in
its successor, starts the jobs again, `silence + maintenance` seconds of `Pace` later at most. A job may
therefore run twice, and the runs may overlap; a run that RQ has given up has no say about the outcome.

While Redis is away the worker stays and tries again; jobs that run go on. The outcome of a job that ends
meanwhile is tried for about five seconds and then lost: that job runs again.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any

from redis import Redis
from rq.command import parse_payload
from rq.defaults import DEFAULT_LOGGING_DATE_FORMAT, DEFAULT_LOGGING_FORMAT
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue

from app.clock import Clock
from workers.engine.job import AsyncJob, JobFunction
from workers.engine.job_loop import JobLoop
from workers.engine.recording_worker import RecordingWorker
from workers.engine.schedule import Schedule
from workers.engine.steady_worker import Pace

log = logging.getLogger("outkeep.worker")

Jobs = Callable[[], AbstractAsyncContextManager[Mapping[str, JobFunction]]]
"""Opens what the jobs share (a session, …) and yields the closed list: RQ's name of a job → its function.

For plain functions: `lambda: contextlib.nullcontext({"package.module.job": job})`.
"""


class AsyncWorker(RecordingWorker):
    """Runs the jobs of one queue, `slots` at a time.

    `jobs` is entered on the loop before the first job and left after the drain. `scheduled_queues` are those
    whose delayed retries this process starts when no other process does. `drain_timeout` is in seconds.
    """

    def __init__(
        self,
        queue: str,
        *,
        connection: Redis,
        jobs: Jobs,
        slots: int = 256,
        threads: int = 4,
        name: str | None = None,
        scheduled_queues: Sequence[str] = (),
        drain_timeout: float = 30,
        pace: Pace | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(queue, connection=connection, name=name, pace=pace or Pace(), clock=clock)
        self._drain_timeout = drain_timeout
        self._slot_count = slots
        self._slots = threading.Semaphore(slots)
        self._functions: Mapping[str, JobFunction] = {}
        self._loop = JobLoop(jobs)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rq")
        self._schedule = Schedule(scheduled_queues, self.connection) if scheduled_queues else None

    def work(self, *, burst: bool = False, logging_level: str = "WARNING") -> bool:  # type: ignore[override]
        """Work until SIGTERM or SIGINT, or with `burst` until the queue is empty; True if a job was taken.

        Running jobs then get `drain_timeout` seconds; what is cut off is left to maintenance. A second signal
        ends the process at once with status 1. Raises what entering or leaving `jobs` raised, and redis'
        ConnectionError when Redis is away at the start.
        """
        self._functions = self._loop.start()
        try:
            worked = super().work(burst=burst, logging_level=logging_level)
        finally:
            closed = self._loop.close(timeout=4)
            self._pool.shutdown(wait=False, cancel_futures=True)
        if not closed:
            log.warning("a thread of a job that was cut off does not end: leaving it behind")
            logging.shutdown()
            os._exit(0)  # Python would wait for that thread for ever
        if self._loop.failure:
            raise self._loop.failure
        return worked

    def bootstrap(
        self,
        logging_level: str | None = "WARNING",
        date_format: str = DEFAULT_LOGGING_DATE_FORMAT,
        log_format: str = DEFAULT_LOGGING_FORMAT,
    ) -> None:
        """Register in Redis, then begin to beat and to schedule."""
        super().bootstrap(logging_level, date_format, log_format)
        self.start_beats()
        if self._schedule:
            self._schedule.start()

    def teardown(self) -> None:
        """Wait for the running jobs, then sign off."""
        if self._schedule:
            self._schedule.stop()
        cut_off = self._drain()
        if cut_off:
            log.warning("%d running jobs are cut off; another worker starts them again", cut_off)
        self.stop_beats()
        super().teardown()

    def _drain(self) -> int:
        """Wait for all slots; return how many are still taken at the deadline."""
        deadline = time.monotonic() + self._drain_timeout
        free = 0
        for _ in range(self._slot_count):
            free += self._slots.acquire(timeout=max(0.0, deadline - time.monotonic()))
        return self._slot_count - free

    def dequeue_job_and_maintain_ttl(
        self,
        timeout: int | None,
        max_idle_time: int | None = None,  # noqa: ARG002
    ) -> tuple[Job, Queue] | None:
        """Wait for a free slot and a job; None when there is no job and `timeout` is None.

        Raises StopRequested after a signal and when the loop has died, and nothing else.
        """
        while not self.stopping and self._loop.alive:
            if not self.ready() or not self._slots.acquire(timeout=1):
                continue
            found = self.take(timeout)
            if found is None:
                self._slots.release()
            if found or timeout is None:
                return found
        raise StopRequested

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Hand a job to the pool; returns at once."""
        assert isinstance(job, AsyncJob)
        job.origin = queue.name  # what a planted hash says does not count
        self._pool.submit(self._begin, job, queue)

    def _begin(self, job: AsyncJob, queue: Queue) -> None:
        try:
            admitted = job.admit(self._functions)
            execution = self.prepare_execution(job)
            if admitted:
                self._launch(job, queue, execution)
        except Exception as error:
            log.warning(
                "job %s was not begun, maintenance brings it back: %s",
                job.id,
                error,
                exc_info=True,
                extra={"job": job.id},
            )
            self._forget(job)
            return
        if not admitted:
            log.error(
                "job %s is refused and stands with the failed jobs: %s",
                job.id,
                job.refusal,
                extra={"job": job.id},
            )
            self._finish(job, queue, execution)

    def _launch(self, job: AsyncJob, queue: Queue, execution: Execution) -> None:
        def started(task: "asyncio.Task[object]") -> None:
            job.task, job.task_started_at = task, job.started_at
            if job.stop_asked:
                task.cancel()

        def ended(_: "asyncio.Task[object]") -> None:
            self._pool.submit(self._finish, job, queue, execution)

        self._loop.launch(job.run, started, ended)

    def _finish(self, job: AsyncJob, queue: Queue, execution: Execution) -> None:
        try:
            if self.given_up(job, execution):
                log.warning(
                    "job %s was given up while it ran; its outcome does not count",
                    job.id,
                    extra={"job": job.id},
                )
            else:
                self.perform_job(job, queue, execution)
        except Exception as error:
            log.warning(
                "the end of job %s was not saved, it runs again: %s",
                job.id,
                error,
                exc_info=True,
                extra={"job": job.id},
            )
        finally:
            self._forget(job)

    def _forget(self, job: AsyncJob) -> None:
        """End the heartbeats of this run and free its slot."""
        for execution in list(self.executions.values()):
            if execution.job is job:
                self.executions.pop(execution.id, None)
        self._slots.release()

    def handle_payload(self, message: dict[str, Any]) -> None:
        """Carry out a command of RQ's. RQ stops the one job that a worker runs; here it is one of many."""
        payload = parse_payload(message)
        if payload["command"] != "stop-job":
            super().handle_payload(message)  # type: ignore[no-untyped-call]
            return
        for execution_id, execution in list(self.executions.items()):
            if execution.job_id == payload["job_id"]:
                self.request_stop_execution(execution_id)

    def request_stop_execution(self, execution_id: str) -> None:
        """Cancel the task of one execution; it ends as stopped, and is not tried again."""
        execution = self.executions.get(execution_id)
        job = execution.job if execution else None
        if isinstance(job, AsyncJob):
            job.stop_asked = True
            if job.task:
                self._loop.cancel(job.task)
