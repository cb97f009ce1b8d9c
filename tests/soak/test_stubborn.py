"""Code of the user's that catches whatever would end it."""

from pathlib import Path

import pytest
from redis import Redis
from rq.job import JobStatus

from tests.engine.worker_process import has, wait_until
from tests.tell.test_handler_jobs import Workshop

pytestmark = pytest.mark.soak


def test_a_job_that_catches_its_time_limit_is_killed_a_minute_later(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    workshop = Workshop(redis, valkey_url, tmp_path)
    workshop.store()
    workshop.add("bad", "stubborn", "timeout = 1")
    workshop.hand_on("bad")
    job = workshop.last_chance(workshop.job("bad"))
    with workshop.working():
        wait_until(has(job, JobStatus.FAILED), seconds=180)
