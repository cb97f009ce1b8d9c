"""The worker that runs functions of the user's: one process forked for each job, with limits.

One process watches, and forks another (the work-horse) for each job. What RQ leaves open is closed here: a
work-horse ends with its parent, however that dies, so that a job does not run on beside its second run; and
the job of a killed worker is found after seconds, not minutes.

The parent has one thread, and opens nothing that starts another: of a process with threads, a fork copies the
locks that they hold and not the threads that would release them.
"""

import importlib
import logging
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, ClassVar

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq import Retry, Worker, worker_registration
from rq.exceptions import DequeueTimeout, DeserializationError, StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.suspension import WORKERS_SUSPENDED
from rq.timeouts import HorseMonitorTimeoutException
from rq.utils import now
from rq.worker.base import WorkerStatus

from app.clock import Clock
from app.core.errors import OutkeepError, Permanent
from app.core.handlers import Handler, calls
from app.core.names import HANDLE_QUEUE, split_handle_job_id
from app.core.policy import UNKNOWN_PATIENCE, UNKNOWN_WAIT
from app.maintain.user_jobs import end_of, facts, shortened, tell
from app.storage.store import Storage
from app.up import lifeline
from workers.engine.job import GuardedJob
from workers.engine.job_queue import JobQueue
from workers.engine.patient_worker import Outage, Pace, PatientWorker, own_client

Listed = Mapping[str, int]
"""The functions that may run, by their dotted names, with the bytes of memory that each may take."""

log = logging.getLogger("outkeep.worker")


class ListedJob(GuardedJob):
    """A job that runs only functions of the list; whoever can write to Redis cannot add one."""

    listed: ClassVar[Listed] = {}
    when_over: Callable[[], None] | None = None
    """Called when the function has ended, however."""

    @property
    def func(self) -> Callable[..., Any]:
        """The function to run; raises `Permanent` when it is not on the list, and what its import raises."""
        if not self.is_listed:
            raise Permanent("job_refused", f"{self.func_name!r} is not a job of the handlers file")
        try:
            function: Callable[..., Any] = super().func
        except ValueError:
            raise _import_fault(str(self.func_name)) from None
        return function

    @property
    def is_listed(self) -> bool:
        """Whether its function may run."""
        try:
            return self.func_name in self.listed
        except (DeserializationError, TypeError):  # whoever can write to Redis can write anything
            return False

    @property
    def should_retry(self) -> bool:
        """Never for what is refused: the list is the same the next time."""
        return self.is_listed and super().should_retry

    def perform(self) -> Any:
        """Run it within its memory; leave one that another worker may know to that."""
        if self.is_listed:
            if self.meta.pop("unknown_since", None) is not None:
                self.save_meta()  # type: ignore[no-untyped-call]
        elif (again := self._until_known()) is not None:
            return again
        try:
            with _limited(self.listed.get(str(self.func_name))):
                return super().perform()
        finally:
            if self.when_over is not None:
                self.when_over()

    def _until_known(self) -> Retry | None:
        """The next run of a job of a handler's, as during a rolling restart; None once nobody knows it."""
        if split_handle_job_id(self.id) is None:
            return None
        at = now().timestamp()
        since = self.meta.get("unknown_since")
        if since is None:
            self.meta["unknown_since"] = since = at
            self.save_meta()  # type: ignore[no-untyped-call]
            log.warning(
                "a function that this worker does not know is left to another one, for %.0f min",
                UNKNOWN_PATIENCE.total_seconds() / 60,
                extra=facts(self.id),
            )
        if not isinstance(since, float) or not 0 <= at - since < UNKNOWN_PATIENCE.total_seconds():
            return None
        self.number_of_retries = (self.number_of_retries or 0) - 1  # it did not run
        return Retry(max=1_000_000, interval=int(UNKNOWN_WAIT))


def listed_jobs(listed: Listed) -> type[ListedJob]:
    """The class of the jobs of a worker that runs `listed`."""
    return type("ListedJob", (ListedJob,), {"listed": listed})


def _import_fault(name: str) -> ImportError | AttributeError:
    """What keeps a function from being found: RQ calls each such name invalid, whatever is missing."""
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(module)
    except ImportError as error:
        return error
    return AttributeError(f"module {module!r} has no function {attribute!r}")


@contextmanager
def _limited(size: int | None) -> Iterator[None]:
    """Let what this process allocates be `size` bytes at most; more raises MemoryError.

    Not the address space: libraries reserve much more of it than they ever use.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if size is not None:
        most = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        # RQ still has to write down what happened.
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


PACE = Pace()

OVERRUN = 10.0
"""Seconds after the end of its function within which a run ends, too."""

LOOK = 0.05
"""Seconds between two looks at a work-horse that has closed what it was given."""


class HandleWorker(PatientWorker, Worker):
    """RQ's worker, that says every `beat` seconds that it lives and is missed after `silence`.

    `on_beat` is called then. How a job ended is written to what `storage` opens, if there is one; it is
    called in the work-horse only.
    """

    queue_class = JobQueue

    def __init__(
        self,
        connection: Redis,
        listed: Listed,
        storage: Callable[[], Storage] | None,
        pace: Pace,
        *,
        clock: Clock,
        on_beat: Callable[[], None],
    ) -> None:
        self.pace = pace
        self.silence = pace.silence
        self.clock = clock
        self._on_beat = on_beat
        self.outage = Outage()
        self._storage = storage
        self._is_written = False
        self._horse_lives: int | None = None
        self._forked_at = 0.0
        # Only this process holds the writing end: when it dies, the work-horse reads the end of the file.
        self._cut_with_parent, self._held_by_parent = os.pipe()
        super().__init__(
            [HANDLE_QUEUE],
            connection=own_client(connection),
            serializer=JSONSerializer,
            job_class=listed_jobs(listed),
            worker_ttl=pace.worker_ttl,
            maintenance_interval=pace.maintenance,
            job_monitoring_interval=pace.beat + 60,  # of RQ's alarm: `wait_for_horse` looks up in time
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
        """Say that this worker lives, and listen; RQ adds a minute to each of its own time-outs."""
        if self.is_horse:
            super().heartbeat(self.pace.worker_ttl, pipeline)
            return
        with self._said():
            self._report()

    def _report(self) -> bool:
        """Say that this worker lives, and who it is: Redis may have come back empty. Obey, ask for the time.

        Whether jobs may be taken; raises redis' errors.
        """
        with self.connection.pipeline() as own:
            super().heartbeat(self.pace.worker_ttl, own)
            own.hset(self.key, mapping=self.serialize())
            worker_registration.register(self, own)
            own.exists(WORKERS_SUSPENDED)
            suspended = bool(own.execute()[-1])
        self.clock.ask_aloud(self.connection)
        self._on_beat()
        self.outage.ends()
        self.commands.obey()
        return not suspended and not self.clock.is_far_off

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Around what is only said to Redis, and said again soon: we do without while it does not serve."""
        try:
            yield
        except RedisError as error:
            self.outage.begins(error)

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """Say that a run lives, which goes on whether Redis listens or not."""
        with self._said():
            super().maintain_heartbeats(job, execution)
        # By how long it runs RQ judges whether it is stuck, and the clock may just have stepped.
        job.started_at = now() - timedelta(seconds=time.monotonic() - self._forked_at)

    def set_state(self, state: str, pipeline: Pipeline | None = None) -> None:
        """Say what this worker does."""
        with self._said():
            super().set_state(state, pipeline)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """End after the job that runs, or at once without one: for SIGTERM and SIGINT."""
        # What RQ raises for an idle worker may be swallowed by what it interrupts: a line of the log does so.
        self._stop_requested = True
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def set_shutdown_requested_date(self) -> None:
        """Say that it ends after its job; a signal must not raise anything in the middle of that."""
        with self._said():
            super().set_shutdown_requested_date()  # type: ignore[no-untyped-call]

    def check_for_suspension(self, burst: bool) -> None:  # noqa: FBT001
        """Left to `_report`."""

    def dequeue_job_and_maintain_ttl(
        self,
        timeout: int | None,
        max_idle_time: int | None = None,  # noqa: ARG002
    ) -> tuple[Job, Queue] | None:
        """Wait for a job that can be read, and for Redis; None when there is none and `timeout` is None.

        RQ's worker would end at a job that cannot be read, and at most errors of Redis.
        """
        [queue] = self.queues
        assert isinstance(queue, JobQueue)
        self.set_state(WorkerStatus.IDLE)
        while not self._stop_requested:
            try:
                if not self._may_take():
                    time.sleep(1)
                    continue
                job = queue.take(timeout)
            except DequeueTimeout:
                continue
            except RedisError as error:
                self.outage.begins(error)
                time.sleep(1)
            except Exception as error:
                job_id = getattr(error, "job_id", None)  # RQ attaches it when the hash cannot be read
                if job_id is None:
                    raise
                with self._said():
                    queue.bury(job_id, f"{type(error).__name__}: {error}")
            else:
                return (job, queue) if job else None
        raise StopRequested

    def _may_take(self) -> bool:
        """Report, and clean up where due; whether jobs may be taken. Raises redis' errors."""
        may = self._report()
        if self.should_run_maintenance_tasks:
            self.run_maintenance_tasks()
        return may

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Fork a work-horse and wait for it."""
        job.origin = queue.name  # what a planted hash says does not count
        try:
            super().execute_job(job, queue)
        except RedisError as error:  # before the fork, or after the end: in between nothing is raised
            self.outage.begins(error)
            log.warning(
                "job %s was not begun, or its end not saved, it runs again: %s",
                job.id,
                error,
                extra=facts(job.id),
            )
        self.executions.clear()

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        """Fork. The end of the work-horse shows at once: only it holds the other end of a pipe."""
        self._horse_lives, held = os.pipe()
        self._forked_at = time.monotonic()
        super().fork_work_horse(job, queue)
        os.close(held)

    def wait_for_horse(self) -> tuple[int | None, int | None, Any]:
        """Wait for the end of the work-horse, and obey RQ's commands meanwhile.

        Raises `HorseMonitorTimeoutException` when it is time for a heartbeat.
        """
        until = time.monotonic() + self.pace.beat
        while (left := until - time.monotonic()) > 0:
            pid, status, usage = os.wait4(self.horse_pid, os.WNOHANG)
            if pid:
                self._let_go()
                return pid, status, usage
            if self._horse_lives is None:
                time.sleep(LOOK)  # it has closed the pipe, and is ending or a daemon
            elif select.select([self._horse_lives], [], [], min(left, 1))[0]:
                self._let_go()
            self.commands.obey()
        raise HorseMonitorTimeoutException

    def _let_go(self) -> None:
        if self._horse_lives is not None:
            os.close(self._horse_lives)
            self._horse_lives = None

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        """The work-horse: run the job, and end at once with all it has started when the parent is gone."""
        os.close(self._held_by_parent)
        lifeline.watch(_end_group, fd=self._cut_with_parent)
        super().main_work_horse(job, queue)

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Log why a run failed, without what the job was given: RQ logs its arguments, too."""
        why = shortened(f"{type(exc_info[1]).__name__}: {exc_info[1]}")
        assert isinstance(job, ListedJob)
        if job.is_listed:
            _say_failed(job, why, exc_info)
        else:
            log.error(
                "job %s is refused and stands with the failed jobs: %s", job.id, why, extra=facts(job.id)
            )

    def handle_work_horse_killed(self, job: Job, *how: Any) -> None:
        """Log that the process of a run is gone; `how`: its pid, its wait status, what it used."""
        if how[1] is None:
            _say_failed(job, "it ran on after its time limit and was killed")
            return
        code = os.waitstatus_to_exitcode(how[1])
        _say_failed(
            job, f"its process was ended by signal {-code}" if code < 0 else f"its process left with {code}"
        )

    def perform_job(self, job: Job, queue: Queue, execution: Execution) -> bool:
        """In the work-horse: run the job, and tell how it ended for good. If it is killed, the sweep does."""
        assert isinstance(job, ListedJob)
        job.when_over = lambda: self._expect_end(job)
        done: bool = super().perform_job(job, queue, execution)
        self._is_written = True
        if self._storage is not None:
            try:
                end = end_of(self.connection, job.id)
                if end.is_news:
                    tell(self.connection, self._storage(), job.id, end)
            except (RedisError, OutkeepError) as error:
                log.warning("the end of job %s is told by the sweep: %s", job.id, error)
        return done

    def _expect_end(self, job: Job) -> None:
        # A partition may have ended meanwhile: what was opened before it answers no more, and the function
        # must not run again because its end could not be saved.
        self.connection.connection_pool.disconnect()
        watch = threading.Timer(OVERRUN, self._say_overrun, [job, threading.get_ident()])
        watch.daemon = True
        watch.start()

    def _say_overrun(self, job: Job, thread: int) -> None:
        frame = sys._current_frames().get(thread)  # noqa: SLF001  # the one way to the stack of another thread
        stack = "".join(traceback.format_stack(frame)) if frame else ""
        log.error(
            "a run goes on %.0f s after its function has ended",
            OVERRUN,
            extra=facts(job.id) | {"stack": stack},
        )
        if self._is_written:
            os._exit(0)  # RQ knows how it ended, and the sweep tells


def _say_failed(job: Job, why: str, exc_info: tuple[Any, ...] | None = None) -> None:
    said = facts(job.id) | {"reason": why}
    if job.should_retry:
        wait = job.get_retry_interval()
        log.warning(
            "a job of a handler failed, again in %.0f s: %s", wait, why, extra=said, exc_info=exc_info
        )
    else:
        log.warning("a job of a handler failed for the last time: %s", why, extra=said, exc_info=exc_info)


def listed(handlers: Sequence[Handler]) -> Listed:
    """What this worker may run; where handlers share a function, it has the most memory that one gives."""
    found: dict[str, int] = {}
    for call in calls(handlers):
        if call.queue == HANDLE_QUEUE:
            found[call.function] = max(call.memory, found.get(call.function, 0))
    return found


def worker(
    connection: Redis,
    functions: Listed,
    storage: Callable[[], Storage] | None = None,
    *,
    pace: Pace = PACE,
    clock: Clock | None = None,
    on_beat: Callable[[], None] = lambda: None,
) -> HandleWorker:
    """A worker that runs `functions` and no others; `storage` opens the storage in each work-horse.

    `on_beat` is called every few seconds, and must start no thread.
    """
    return HandleWorker(connection, functions, storage, pace, clock=clock or Clock(), on_beat=on_beat)


def _end_group() -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)  # RQ gives each work-horse a group of its own
