"""RQ's job as our workers see it: inert in itself, since Redis is not trusted to name code.

Whoever can write to Redis can write a job: JSON is the only serializer, and nothing that names code or an
address outside of the function itself is ever taken from the hash.

RQ's own `Job` imports whatever function or instance method its hash names. This class imports nothing: the
worker looks the name up in its closed list and hands over the coroutine function.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq.exceptions import DeserializationError
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.timeouts import BaseDeathPenalty, JobTimeoutException

from app.core.errors import Permanent

NAMES_CODE = (
    b"success_callback_name",
    b"failure_callback_name",
    b"stopped_callback_name",
    b"webhooks",
)
"""Fields of a job hash that make RQ import a function or open a URL."""


class GuardedJob(Job):
    """What the jobs of all our workers have in common; `forbidden` names the fields that were left out."""

    def __init__(
        self,
        id: str | None = None,  # noqa: A002  # RQ's name
        connection: Redis | None = None,
        serializer: object = None,  # noqa: ARG002  # always JSON, also where RQ's default is pickle
    ) -> None:
        super().__init__(id, connection)
        self.serializer = JSONSerializer  # handed to RQ, it would be examined each time
        self.forbidden: tuple[str, ...] = ()

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        """Take over the hash without what names code, so that no later step of RQ can run it."""
        self.forbidden = tuple(field.decode() for field in NAMES_CODE if raw_data.get(field))
        super().restore({field: value for field, value in raw_data.items() if field not in NAMES_CODE})

    def prepare_for_execution(self, worker_name: str, pipeline: Pipeline) -> None:
        """Also forget, in the same transaction, that the job was seen on the intermediate list.

        RQ keeps that mark for a day, and would take the job's next run for stuck at first sight.
        """
        super().prepare_for_execution(worker_name, pipeline)
        taken = IntermediateQueue(f"{Queue.redis_queue_namespace_prefix}{self.origin}", self.connection)
        pipeline.delete(taken.get_first_seen_key(self.id))

    def set_status(self, status: JobStatus, pipeline: Pipeline | None = None) -> None:
        """Never write `scheduled` ahead of the transaction that schedules.

        RQ does, and a worker killed between the two leaves a job that no registry and no queue holds.
        The transaction writes the status itself.
        """
        if pipeline is None and status == JobStatus.SCHEDULED:
            pipeline = self.connection.pipeline()  # never executed: only the object remembers
        super().set_status(status, pipeline)


JobFunction = Callable[..., Awaitable[Any]]
"""Called as `await function(job, *args, **kwargs)`; returns something JSON can hold, or an `rq.Retry`."""


class AsyncJob(GuardedJob):
    """One run of a job: admitted or refused, then a coroutine on the loop.

    `task` runs it; `is_running` while its function does, and may be cancelled. `stop_asked` when somebody has
    asked for its end.
    """

    function: JobFunction | None = None
    refusal = "the worker never admitted it"
    task: asyncio.Task[None] | None = None
    is_running = False
    stop_asked = False

    def admit(self, functions: Mapping[str, JobFunction]) -> bool:
        """Look the job up in the closed list; False leaves the reason in `refusal`."""
        self.refusal = self._reason_against(functions)
        if self.refusal:
            return False
        self.function = functions[str(self.func_name)]
        return True

    def _reason_against(self, functions: Mapping[str, JobFunction]) -> str:
        if self.forbidden:
            return f"it asks for {', '.join(self.forbidden)}, which is never run"
        try:
            name, instance, args, kwargs = self.func_name, self.instance, self.args, self.kwargs
        except DeserializationError:
            return "its payload is not JSON of the form [name, null, [arguments], {arguments}]"
        if not isinstance(name, str) or name not in functions:
            return f"{str(name)[:100]!r} is not on this worker's list of jobs"
        if instance is not None or not isinstance(args, list) or not isinstance(kwargs, dict):
            return "its payload is not of the form [name, null, [arguments], {arguments}]"
        return ""

    async def run(self) -> Any:
        """Run the function, cancelled at the job's time-out.

        Raises JobTimeoutException then, and otherwise whatever the function raises. A job that was refused
        raises `Permanent`, and uses up no retries.
        """
        if self.function is None:
            self.retries_left = 0
            raise Permanent("job_refused", f"job {self.id} was not run: {self.refusal}")
        seconds = self.timeout or Queue.DEFAULT_TIMEOUT
        try:
            async with asyncio.timeout(seconds if seconds > 0 else None) as deadline:
                return await self.function(self, *self.args, **self.kwargs)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise JobTimeoutException(f"Task exceeded maximum timeout value ({seconds} seconds)") from error
        except (SystemExit, KeyboardInterrupt) as error:  # on the loop these would end all other jobs as well
            raise RuntimeError(f"the job tried to end the worker with {type(error).__name__}") from error

    @property
    def func(self) -> None:
        """Nothing: what RQ would import here is never imported."""


class NoDeathPenalty(BaseDeathPenalty):
    """The loop cancels at the deadline; RQ's own way is a signal, which works in the main thread only."""

    def setup_death_penalty(self) -> None:
        """Nothing to set up."""

    def cancel_death_penalty(self) -> None:
        """Nothing to cancel."""
