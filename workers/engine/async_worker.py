"""An RQ worker for one queue that runs coroutine jobs, many at a time, on one event loop.

It takes as many jobs as it has free slots, in one step; each is a task; what it tells Redis goes through one
group commit. Threads are left for what RQ does rarely: its maintenance, its commands, its scheduler.

When a process dies, its executions fall silent and RQ's maintenance in any other worker of the queue, or in
its successor, starts the jobs again, `silence + maintenance` seconds of `Pace` later at most. A job may
therefore run twice, and the runs may overlap; a run that RQ has given up has no say about the outcome.

While Redis is away the worker stays and tries again; jobs that run go on, and what they came to is kept until
Redis takes it.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any
from uuid import uuid4

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import DataError, RedisError
from rq import worker_registration
from rq.command import parse_payload
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import now
from rq.worker.base import WorkerStatus

from app.accept.group_commit import Command, GroupCommit
from app.clock import Clock
from app.core.errors import OutkeepError
from workers.engine import running
from workers.engine.endings import END, Endings, Outcome, conclude
from workers.engine.intake import Intake, Taken
from workers.engine.job import AsyncJob, JobFunction, NoDeathPenalty
from workers.engine.job_queue import JobQueue
from workers.engine.patient_worker import Outage, Pace, PatientWorker, own_client
from workers.engine.schedule import Schedule

AT_ONCE = 64
"""Jobs that are taken in one step: Redis serves nobody else meanwhile."""

AGAIN = 1.0
"""Seconds until it is tried again when Redis does not serve."""

CLEANING_UP = 2.0
"""Seconds that jobs cut off at the end get to clean up after themselves."""

log = logging.getLogger("outkeep.worker")

Jobs = Callable[[], AbstractAsyncContextManager[Mapping[str, JobFunction]]]
"""Opens what the jobs share (a session, …) and yields the closed list: RQ's name of a job → its function.

For plain functions: `lambda: contextlib.nullcontext({"package.module.job": job})`.
"""


class AsyncWorker(PatientWorker):
    """Runs the jobs of one queue, `slots` at a time.

    `jobs` is entered on the loop before the first job and left after the drain. `scheduled_queues` are those
    whose delayed retries this process starts when no other process does. `drain_timeout` is in seconds.
    `commit` is shared with others on the loop, who close it; without one it makes its own.

    Of `connection` only the address is used: RQ changes the socket time-out of the pool that it is given.
    Redis must answer now; the constructor raises redis' ConnectionError.
    """

    job_class = AsyncJob
    queue_class = JobQueue
    death_penalty_class = NoDeathPenalty
    log_result_lifespan = False

    def __init__(
        self,
        queue: str,
        *,
        connection: Redis,
        jobs: Jobs,
        slots: int = 256,
        name: str | None = None,
        scheduled_queues: Sequence[str] = (),
        drain_timeout: float = 30,
        pace: Pace | None = None,
        clock: Clock | None = None,
        commit: GroupCommit | None = None,
    ) -> None:
        _keep_rq_from_printing()
        self.pace = pace or Pace()
        super().__init__(
            [queue],
            name=name or f"{queue}-{uuid4().hex[:12]}",
            connection=own_client(connection),
            maintenance_interval=self.pace.maintenance,
            worker_ttl=self.pace.worker_ttl,
            job_monitoring_interval=self.pace.beat,
            log_job_description=False,
            serializer=JSONSerializer,
        )
        own = self.queues[0]
        assert isinstance(own, JobQueue)
        own.stuck_after = self.pace.stuck
        self.job_queue = own
        self.silence = self.pace.silence
        self.clock = clock or Clock()
        self.outage = Outage()
        self.stopping = False
        self._jobs = jobs
        self._functions: Mapping[str, JobFunction] = {}
        self._slots = slots
        self._tasks: set[asyncio.Task[None]] = set()
        self._drain_timeout = drain_timeout
        self._schedule = Schedule(scheduled_queues, self.connection) if scheduled_queues else None
        self._suspended = False
        self._deaf = threading.Event()
        self._news = asyncio.Event()
        self._commit = commit or GroupCommit(self.connection)
        self._owns_commit = commit is None
        self._endings = Endings(self, own)
        self._intake = Intake(self, own, self.connection, silence=self.silence, on_news=self._news.set)

    def work(self, *, burst: bool = False) -> bool:  # type: ignore[override]
        """Work until SIGTERM or SIGINT, or with `burst` until nothing waits or runs; True if there was a job.

        Raises what entering or leaving `jobs` raised.
        """
        return running.run([self], burst=burst)

    def stop(self) -> None:
        """Take no more jobs, and end when those that run have ended. Called on the loop."""
        self.stopping = True
        self._news.set()

    async def serve(self, *, burst: bool = False) -> bool:
        """As `work`, on a loop that runs. Ends after `stop`.

        Running jobs then get `drain_timeout` seconds; what is cut off is left to maintenance.
        """
        self._loop = asyncio.get_running_loop()
        async with self._jobs() as self._functions:
            self.birth_date = self.last_heartbeat = now()
            self.subscribe()
            if self._schedule:
                self._schedule.start()
            await self._report()
            chores = [
                self._loop.create_task(chore()) for chore in (self._reporting, self._beat, self._maintain)
            ]
            try:
                return await self._take_jobs(burst=burst)
            finally:
                if self._schedule:
                    self._schedule.stop()
                await self._drain()
                for chore in chores:
                    chore.cancel()
                await asyncio.wait(chores)
                self._intake.close()
                if self._owns_commit:
                    await self._commit.close()
                await asyncio.to_thread(self.teardown)
                for chore in chores:
                    if not chore.cancelled():
                        chore.result()

    async def _take_jobs(self, *, burst: bool) -> bool:
        """Begin jobs while there are slots, until `stop`; with `burst`, until there are none."""
        worked = False
        while not self.stopping:
            self._news.clear()
            free = self._slots - len(self._tasks)
            may = free > 0 and not (self._suspended or self.outage or self.clock.is_far_off)
            if not may or self._intake.is_empty:
                await self._news.wait()
                continue
            started_at = now()
            try:
                found = await self._intake.take(min(free, AT_ONCE), started_at, then_wait=not burst)
            except RedisError as error:
                self.outage.begins(error)  # until a report has come through
                continue
            for one in found:
                self._begin(one, started_at)
            worked = worked or bool(found)
            if burst and not found:
                if not self._tasks:
                    break
                await self._news.wait()
        return worked

    def _begin(self, taken: Taken, started_at: datetime) -> None:
        """Start the task of one job, or list what is no job with the failed ones."""
        job_id = taken.id.decode(errors="replace")
        if not taken.execution:
            if taken.problem or not taken.id.isascii():
                self._bury(job_id, taken.problem or "it is no id of a job")
            return
        execution = Execution(taken.execution, job_id, self.connection, self.name)
        execution.created_at = execution.last_heartbeat = started_at
        job = AsyncJob(job_id, connection=self.connection)
        try:
            job.restore(taken.fields)
        except NoSuchJobError:
            self._forget(job, execution)
            return
        except Exception as error:  # noqa: BLE001  # a planted hash can be wrong in any way
            self._forget(job, execution)
            self._bury(job_id, f"{type(error).__name__}: {error}")
            return
        job.origin = self.job_queue.name  # what a planted hash says does not count
        job.worker_name, job._status = self.name, JobStatus.STARTED  # noqa: SLF001  # its setter writes to Redis
        job.started_at = job.last_heartbeat = started_at
        execution._job = job  # noqa: SLF001  # it would be fetched
        if not job.admit(self._functions):
            log.error(
                "job %s is refused and stands with the failed jobs: %s",
                job.id,
                job.refusal,
                extra={"job": job.id},
            )
        self.executions[execution.id] = execution
        job.task = self._start(self._run(job, execution))

    def _start(self, work: Any) -> "asyncio.Task[None]":
        """A task that takes a slot until it ends."""
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._news.set()
        if not task.cancelled() and (error := task.exception()):
            log.warning("a run ended without its outcome, it runs again: %s", error, exc_info=error)

    async def _run(self, job: AsyncJob, execution: Execution) -> None:
        before = job._serialize_meta()  # noqa: SLF001  # it knows of what cannot be read
        outcome: Outcome
        job.is_running = True
        try:
            outcome = await job.run()
        except asyncio.CancelledError as error:
            if not job.stop_asked:
                raise  # cut off at the end of the worker
            outcome = error
        except Exception as error:  # noqa: BLE001  # whatever it is, RQ writes it down
            outcome = error
        job.is_running = False
        job.ended_at = now()
        try:
            await self._end(job, execution, outcome, before)
        finally:
            self.executions.pop(execution.id, None)

    async def _end(self, job: AsyncJob, execution: Execution, outcome: Outcome, meta: Any) -> None:
        """Write down how a run ended, however long Redis does not take it."""
        if job.has_rate_limit or job.repeats_left:
            await asyncio.to_thread(conclude, self, self.job_queue, job, execution, outcome)
            return
        commands = self._endings.commands(job, execution, outcome)
        if (changed := job._serialize_meta()) != meta:  # noqa: SLF001
            commands.insert(0, ("HSET", job.key, "meta", changed))
        how = await self._committed(job, execution, commands)
        if how == b"given up":
            log.warning(
                "job %s was given up while it ran; its outcome does not count", job.id, extra={"job": job.id}
            )
            self._forget(job, execution)
        elif how == b"has dependents":
            await asyncio.to_thread(conclude, self, self.job_queue, job, execution, outcome)

    async def _committed(self, job: AsyncJob, execution: Execution, commands: Sequence[Command]) -> bytes:
        """What `END` says, as soon as Redis takes it. Doing it again changes nothing."""
        keys = (self.job_queue.started_job_registry.key, job.key, job.dependents_key)
        words = [word for command in commands for word in (len(command), *command)]
        said = False
        while True:
            try:
                how: bytes = await self._commit.script(END, keys, (execution.composite_key, *words))
            except DataError:
                raise
            except RedisError as error:
                if not said:
                    log.warning(
                        "the end of job %s was not saved, tried again: %s",
                        job.id,
                        error,
                        extra={"job": job.id},
                    )
                said = True
                self.executions[execution.id] = execution  # RQ's function has taken it out: it lives on
                await asyncio.sleep(AGAIN)
                self.executions.pop(execution.id, None)
            else:
                return how

    def _forget(self, job: AsyncJob, execution: Execution) -> None:
        """Take one execution out of RQ's books, as well as that goes: it expires anyway."""
        job.origin = self.job_queue.name
        self._say(lambda pipeline: self.cleanup_execution(job, pipeline, execution))

    def _bury(self, job_id: str, reason: str) -> None:
        self._say(lambda pipeline: self.job_queue.list_unreadable(job_id, reason, pipeline))

    def _say(self, fill: Callable[[Pipeline], object]) -> None:
        async def say() -> None:
            try:
                await self._commit.pipeline(fill)
            except RedisError as error:
                self.outage.begins(error)

        self._start(say())

    async def _drain(self) -> None:
        """Wait for all jobs, then cut off those whose functions still run."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._drain_timeout)
        if not self._tasks:
            return
        log.warning("%d running jobs are cut off; another worker starts them again", len(self._tasks))
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=CLEANING_UP)

    async def _report(self) -> None:
        """Tell Redis that this worker lives and what it does, learn whether workers are suspended.

        Everything is written anew each time: a Redis that comes back empty has forgotten this worker.
        """

        def fill(pipeline: Pipeline) -> None:
            self.heartbeat(pipeline=pipeline)
            pipeline.hset(self.key, mapping=self.serialize())
            self.set_state(WorkerStatus.SUSPENDED if self._suspended else state, pipeline=pipeline)
            worker_registration.register(self, pipeline)
            pipeline.exists(WORKERS_SUSPENDED)

        state = WorkerStatus.BUSY if self.executions else WorkerStatus.IDLE
        try:
            self._suspended = bool((await self._commit.pipeline(fill))[-1])
        except RedisError as error:
            self.outage.begins(error)
        else:
            self.outage.ends()
            self._news.set()

    async def _reporting(self) -> None:
        while True:
            await asyncio.sleep(1)
            await self._report()

    async def _beat(self) -> None:
        """Say of all executions that they live, in one pipeline."""

        def fill(pipeline: Pipeline) -> None:
            for execution, job in living:
                execution.heartbeat(job.started_job_registry, self.silence, pipeline)
                job.heartbeat(now(), self.silence, pipeline)

        while True:
            await asyncio.sleep(self.pace.beat)
            living = [(execution, execution.job) for execution in self.executions.values()]
            if not living:
                continue
            try:
                answers = await self._commit.pipeline(fill)
                each = len(answers) // len(living)
                # As RQ does: a job that was deleted meanwhile must not come back as a heartbeat alone.
                gone = [
                    job.key for (_, job), new in zip(living, answers[each - 1 :: each], strict=True) if new
                ]
                if gone:
                    await self._commit.commands(("DEL", *gone))
            except RedisError as error:
                log.warning("no heartbeats, running jobs may be started again elsewhere: %s", error)

    async def _maintain(self) -> None:
        while True:
            if self.should_run_maintenance_tasks:
                await asyncio.to_thread(self.run_maintenance_tasks)
            await asyncio.sleep(1)

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:  # noqa: ARG002
        """Add the worker's heartbeat to a pipeline; RQ's calls without one are left to `_report`."""
        if pipeline is not None:
            super().heartbeat(self.pace.worker_ttl, pipeline)

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
            self._loop.call_soon_threadsafe(self._stop_job, job)

    def _stop_job(self, job: AsyncJob) -> None:
        if job.is_running and job.task:
            job.stop_asked = True
            job.task.cancel()


def _keep_rq_from_printing() -> None:
    """RQ's loggers add handlers that print unless they find one; what they say goes up to the root."""
    logger = logging.getLogger("rq")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    for name in ("rq.worker", "rq.job"):
        logging.getLogger(name).setLevel(logging.WARNING)
