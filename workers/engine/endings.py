"""How a run ended: all that RQ's own functions write of it, in one step, unless the run was given up."""

import copy
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Retry
from rq.executions import Execution
from rq.job import JobStatus
from rq.job_lifecycle import format_exc_info
from rq.queue import Queue
from rq.worker.base import BaseWorker

from app.accept.group_commit import Command
from workers.engine.job import AsyncJob

END = """
-- KEYS: 1 started jobs of the queue, 2 job, 3 those that depend on it
-- ARGV: 1 the execution; then commands, each after the number of its words
-- A job whose hash is gone as well (Redis came back empty) is written anew.
local lives = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lives and redis.call('EXISTS', KEYS[2]) == 1 then return 'given up' end
if redis.call('EXISTS', KEYS[3]) == 1 then return 'has dependents' end
local at = 2
while at <= #ARGV do
  local last = at + ARGV[at]
  redis.call(unpack(ARGV, at + 1, last))
  at = last + 1
end
return 'ended'
"""

Outcome = Any
"""What the function returned, or the exception that it raised."""


class _Recording(Pipeline):
    """Notes what it would send. Of what it is asked meanwhile it knows that nothing depends on the job."""

    recorded: list[Command]

    def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: ARG002, FBT001, FBT002
        self.recorded += [arguments for arguments, _ in self.command_stack]
        self.command_stack = []
        return []

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:  # noqa: ARG002
        if args[0] == "WATCH":
            self.watching = True
        elif args[0] == "SMEMBERS":
            return set()
        else:
            raise RuntimeError(f"RQ reads with {args[0]} at the end of a job")
        return True


class _Recorder(Redis):
    """A client for RQ's functions that sends nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[Command] = []

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:  # noqa: FBT001, FBT002
        pipeline = _Recording(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipeline.recorded = self.commands
        return pipeline

    def execute_command(self, *args: Any, **options: Any) -> Any:  # noqa: ARG002
        raise RuntimeError(f"RQ sends {args[0]} apart at the end of a job")


class Endings:
    """What RQ writes at the end of runs of one worker."""

    def __init__(self, worker: BaseWorker, queue: Queue) -> None:
        self._recorder = _Recorder()
        self._worker = copy.copy(worker)
        self._worker.connection = self._recorder
        self._queue = type(queue)(queue.name, self._recorder, serializer=queue.serializer)
        self._queue.redis_server_version = (7, 0, 0)  # it would ask

    def commands(self, job: AsyncJob, execution: Execution, outcome: Outcome) -> list[Command]:
        """All that is to be written; the arguments of `END` after its first."""
        self._recorder.commands.clear()
        conclude(self._worker, self._queue, job, execution, outcome)
        return list(self._recorder.commands)


def conclude(worker: BaseWorker, queue: Queue, job: AsyncJob, execution: Execution, outcome: Outcome) -> None:
    """Do what RQ's `perform_job` does once the function has ended."""
    about: dict[str, Any] = {
        "job": job,
        "queue": queue,
        "started_job_registry": queue.started_job_registry,
        "execution": execution,
    }
    if isinstance(outcome, BaseException):
        error = (type(outcome), outcome, outcome.__traceback__)
        job._status = JobStatus.FAILED  # noqa: SLF001  # its setter writes to Redis
        worker._stopped_job_id = job.id if job.stop_asked else None  # noqa: SLF001  # such a one is not retried
        worker.handle_exception(job, *error)
        worker.handle_job_failure(exc_string=format_exc_info(error), **about)
        return
    job._result = outcome  # noqa: SLF001
    if isinstance(outcome, Retry):
        worker.handle_job_retry(retry=outcome, **about)
    else:
        job._status = JobStatus.FINISHED  # noqa: SLF001
        worker.handle_job_success(**about)
