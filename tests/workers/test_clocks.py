"""Workers on hosts whose clocks differ, or step: each job runs once, and far off none is taken."""

from pathlib import Path

import pytest
from redis import Redis
from rq.job import JobStatus

from tests.workers.worker_process import (
    FAST,
    assert_clean,
    enqueue,
    has,
    open_gate,
    running,
    runs,
    wait_until,
)
from tests.wrong_clock import WrongClock


@pytest.mark.parametrize("seconds", [30.0, -30.0, -50.0])
def test_hosts_that_differ_run_one_job_once(
    redis: Redis, valkey_url: str, tmp_path: Path, seconds: float
) -> None:
    host = WrongClock(tmp_path, seconds)
    with running(valkey_url, tmp_path, pace=FAST, host=host, scheduled_queues=["sample"]) as wrong:
        first = enqueue(redis, "hold")
        wait_until(lambda: runs(redis, first))
        with running(valkey_url, tmp_path, pace=FAST, scheduled_queues=["sample"]):
            second = enqueue(redis, "hold")
            wait_until(lambda: runs(redis, second))
            delayed = enqueue(redis, "again")
            wait_until(has(delayed, JobStatus.FINISHED))
            # Maintenance of both has had several turns, by which a silent run would be started again.
            require_cleaned(redis, times=4)
            for job in (first, second):
                open_gate(redis, job)
                wait_until(has(job, JobStatus.FINISHED))
            assert (runs(redis, first), runs(redis, second)) == (1, 1)
            assert_clean(redis)
        assert "the clock of this host" in wrong.log


@pytest.mark.parametrize("seconds", [600.0, -7200.0])
def test_a_worker_that_is_far_off_takes_no_jobs(
    redis: Redis, valkey_url: str, tmp_path: Path, seconds: float
) -> None:
    host = WrongClock(tmp_path, seconds)
    with running(valkey_url, tmp_path, pace=FAST, host=host) as wrong:
        jobs = [enqueue(redis, "hold") for _ in range(5)]
        with running(valkey_url, tmp_path, pace=FAST) as right:
            wait_until(lambda: all(runs(redis, job) for job in jobs))
            assert {redis.lindex(f"runs:{job.id}", 0) for job in jobs} == {str(right.process.pid).encode()}
            require_cleaned(redis, times=3)
            for job in jobs:
                open_gate(redis, job)
            wait_until(lambda: all(has(job, JobStatus.FINISHED)() for job in jobs))
            assert {runs(redis, job) for job in jobs} == {1}
        assert "take no jobs" in wrong.log
        host.step_to(0)  # and goes on as soon as NTP has mended it
        late = enqueue(redis, "double", 4)
        wait_until(has(late, JobStatus.FINISHED))
        assert wrong.process.poll() is None


@pytest.mark.parametrize("step", [(0.0, 7200.0), (30.0, -30.0), (-600.0, 0.0)])
def test_a_clock_that_steps_while_jobs_run_changes_nothing_for_them(
    redis: Redis, valkey_url: str, tmp_path: Path, step: tuple[float, float]
) -> None:
    before, after = step
    host = WrongClock(tmp_path, 0.0)
    with running(valkey_url, tmp_path, pace=FAST, host=host), running(valkey_url, tmp_path, pace=FAST):
        jobs = [enqueue(redis, "hold") for _ in range(6)]
        wait_until(lambda: all(runs(redis, job) for job in jobs))
        host.step_to(before)
        require_cleaned(redis, times=2)
        host.step_to(after)
        require_cleaned(redis, times=3)
        for job in jobs:
            open_gate(redis, job)
        wait_until(lambda: all(has(job, JobStatus.FINISHED)() for job in jobs))
        assert {runs(redis, job) for job in jobs} == {1}
        assert_clean(redis)


def require_cleaned(redis: Redis, *, times: int) -> None:
    """Wait until maintenance of some worker has run so often: it takes a lock in Redis each time."""
    for _ in range(times):
        redis.delete("rq:clean_registries:sample")
        wait_until(lambda: redis.exists("rq:clean_registries:sample"))
