"""RQ's job without callbacks and webhooks, and without two gaps in which a killed worker loses it.

Whoever can write to Redis can write a job: JSON is the only serializer, and nothing that names code or an
address outside of the function itself is ever taken from the hash.
"""

from collections.abc import Mapping

from redis import Redis
from redis.client import Pipeline
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.serializers import JSONSerializer

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
