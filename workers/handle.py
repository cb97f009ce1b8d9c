"""The worker of the queue `handle`: RQ's stock forking worker, which isolates what users run."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from redis import Redis
from rq import Worker
from rq.job import Job
from rq.serializers import JSONSerializer

from app.core.errors import Permanent
from app.core.names import HANDLE_QUEUE
from workers.async_job import NAMES_CODE

MAINTENANCE = 10
"""Seconds between clean-ups: how soon the jobs of a killed worker are found."""

WORKER_TTL = 30


class ListedJob(Job):
    """A job that runs only functions the handlers file names; whoever can write to Redis cannot add one."""

    names: ClassVar[frozenset[str]] = frozenset()

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        """Take over the hash without its callbacks and webhooks, which are code and addresses by name too."""
        super().restore({field: value for field, value in raw_data.items() if field not in NAMES_CODE})

    @property
    def func(self) -> Callable[..., Any]:
        """The function to run; raises `Permanent`, for good, when it is not on the list."""
        if self.func_name not in self.names:
            self.retries_left = 0
            raise Permanent("job_refused", f"{self.func_name!r} is not a job of the handlers file")
        function: Callable[..., Any] = super().func
        return function


def worker(connection: Redis, names: frozenset[str]) -> Worker:
    """A worker that runs the functions `names` and no others."""
    listed = type("ListedJob", (ListedJob,), {"names": names})
    return Worker(
        [HANDLE_QUEUE],
        connection=connection,
        serializer=JSONSerializer,
        job_class=listed,
        worker_ttl=WORKER_TTL,
        maintenance_interval=MAINTENANCE,
        job_monitoring_interval=5,
        log_job_description=False,
    )
