"""RQ's queue, with a recovery that takes seconds where RQ's takes minutes, and that no bad entry stops."""

import logging
from typing import Any

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq.defaults import DEFAULT_FAILURE_TTL
from rq.exceptions import NoSuchJobError
from rq.intermediate_queue import IntermediateQueue
from rq.job import JOB_ID_PATTERN, Job
from rq.queue import Queue
from rq.results import Result
from rq.utils import current_timestamp, now
from rq.worker.base import BaseWorker

log = logging.getLogger("outkeep.worker")

MAINTENANCE_LOCK_TTL = 20
"""Seconds. RQ's own is 15 minutes: a worker killed in the middle would stop all recovery for that long."""

FIRST_SEEN_TTL = 60
"""Seconds after which an unconfirmed mark `seen on the intermediate list` is forgotten; RQ: a day."""


class JobQueue(Queue):
    """A queue whose taken but never started jobs come back after `stuck_after` seconds."""

    stuck_after: float = 10

    @property
    def intermediate_queue(self) -> "TakenJobs":
        """The list of jobs that were taken and whose start is not yet written down."""
        return TakenJobs(self.key, connection=self.connection, stuck_after=self.stuck_after)

    def acquire_maintenance_lock(self) -> bool:
        """True for the one worker that may clean up now."""
        return bool(self.connection.set(self.registry_cleaning_key, 1, nx=True, ex=MAINTENANCE_LOCK_TTL))

    def take(self, timeout: int | None) -> Job | None:
        """Take the first job, waiting up to `timeout` seconds; None when there is none and `timeout` is None.

        RQ's `dequeue_any` does the same over a new `Queue` each time. Raises rq's `DequeueTimeout`, and
        whatever reading the hash raised, with the `job_id` on it.
        """
        while (taken := self.lmove(self.connection, self.key, timeout)) is not None:
            job_id = str(taken[1], encoding="utf-8")
            try:
                return self.job_class.fetch(job_id, connection=self.connection)
            except NoSuchJobError:
                continue  # maintenance takes it off the list of those that were taken
            except Exception as error:
                error.job_id = job_id  # type: ignore[attr-defined]
                raise
        return None

    def bury(self, job_id: str, reason: str) -> None:
        """List a taken job whose hash cannot even be read as failed; an id that RQ cannot hold is dropped."""
        with self.connection.pipeline() as pipeline:
            pipeline.lrem(self.intermediate_queue_key, 0, job_id)
            self.list_unreadable(job_id, reason, pipeline)
            pipeline.execute()

    def list_unreadable(self, job_id: str, reason: str, pipeline: Pipeline) -> None:
        """The same of a job that is on no list."""
        log.error("job %.100r cannot be read and was not run: %s", job_id, reason)
        if JOB_ID_PATTERN.fullmatch(job_id):
            score = current_timestamp() + DEFAULT_FAILURE_TTL
            pipeline.zadd(self.failed_job_registry.key, {job_id: score})
            job = self.job_class(job_id, connection=self.connection)
            Result.create_failure(job, DEFAULT_FAILURE_TTL, reason, pipeline=pipeline)


class TakenJobs(IntermediateQueue):
    """The intermediate list of a queue; what stays on it without being started was lost by a dead worker."""

    def __init__(self, queue_key: str, connection: Redis, *, stuck_after: float) -> None:
        super().__init__(queue_key, connection)
        self.stuck_after = stuck_after

    def set_first_seen(self, job_id: str) -> bool:
        """Mark a job as seen now, unless it is marked; True if it was not."""
        key = self.get_first_seen_key(job_id)
        return bool(self.connection.set(key, now().timestamp(), nx=True, ex=FIRST_SEEN_TTL))

    def should_be_cleaned_up(self, job_id: str) -> bool:
        """True once the job has been on the list for `stuck_after` seconds since it was first seen."""
        first_seen = self.get_first_seen(job_id)
        return first_seen is not None and (now() - first_seen).total_seconds() > self.stuck_after

    def drop_what_is_no_text(self) -> None:
        """Remove entries that cannot be ids; RQ fails on each at every clean-up."""
        entries: list[Any] = self.connection.lrange(self.key, 0, -1)
        for entry in entries:
            try:
                str(entry, encoding="utf-8")
            except UnicodeDecodeError:
                log.exception("an entry of %s is no job id and was dropped", self.queue_key)
                self.connection.lrem(self.key, 0, entry)

    def cleanup(self, worker: BaseWorker, queue: Queue) -> None:
        """Bring stuck jobs back as RQ does, through the worker's handling of failures."""
        self.drop_what_is_no_text()
        started = set(queue.started_job_registry.get_job_ids(cleanup=False))
        for job_id in self.get_job_ids():
            if job_id in started or self.set_first_seen(job_id) or not self.should_be_cleaned_up(job_id):
                continue
            self._recover(job_id, worker, queue)

    def _recover(self, job_id: str, worker: BaseWorker, queue: Queue) -> None:
        try:
            job = queue.job_class.fetch(job_id, connection=self.connection)
        except NoSuchJobError:
            self.remove(job_id)
        except RedisError:
            raise
        except Exception as error:  # noqa: BLE001  # a planted hash can be wrong in any way
            assert isinstance(queue, JobQueue)
            queue.bury(job_id, f"{type(error).__name__}: {error}")
        else:
            log.warning(
                "job %s was taken by a worker that died before it began: it goes back",
                job_id,
                extra={"job": job_id},
            )
            job.origin = queue.name
            worker.handle_job_failure(job, queue, exc_string="Job was stuck in intermediate queue.")
            self.remove(job_id)
