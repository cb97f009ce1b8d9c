"""What a killed worker could lose between two steps of RQ's own, and does not here."""

from redis import Redis
from rq.job import Job, JobStatus

from app.accept import queues
from app.core.names import NOTIFY_QUEUE, Kind
from tests.engine.worker_process import status
from workers.engine.job import GuardedJob
from workers.engine.job_queue import JobQueue


def taken(redis: Redis) -> Job:
    """A job as a worker holds it that has taken it."""
    queues.enqueue_notify(redis, "gallery", Kind.PREDICTION, "abc")
    [job_id] = queues.queue(NOTIFY_QUEUE, redis).job_ids
    return GuardedJob.fetch(job_id, connection=redis)


def test_a_job_is_called_scheduled_only_with_what_schedules_it(redis: Redis) -> None:
    job = taken(redis)

    job.set_status(JobStatus.SCHEDULED)

    assert job.get_status(refresh=False) is JobStatus.SCHEDULED
    assert status(job) is JobStatus.QUEUED
    with redis.pipeline() as pipeline:
        job.set_status(JobStatus.SCHEDULED, pipeline=pipeline)
        pipeline.execute()
    assert status(job) is JobStatus.SCHEDULED


def test_that_a_job_was_seen_as_taken_is_forgotten_once_it_begins(redis: Redis) -> None:
    job = taken(redis)
    seen = JobQueue(NOTIFY_QUEUE, connection=redis).intermediate_queue
    assert seen.set_first_seen(job.id)

    with redis.pipeline() as pipeline:
        job.prepare_for_execution("worker", pipeline=pipeline)
        pipeline.execute()

    assert seen.get_first_seen(job.id) is None
