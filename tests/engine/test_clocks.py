"""Workers on hosts whose clocks differ, or step: each job runs once, and far off none is taken."""

import signal
import threading
from pathlib import Path

import pytest
from redis import Redis
from rq.job import JobStatus

from tests.engine.worker_process import (
    FAST,
    assert_clean,
    enqueue,
    has,
    open_gate,
    require_cleaned,
    running,
    runs,
    wait_until,
)
from tests.own_valkey import own_valkey
from tests.wrong_clock import WrongClock

PACE = FAST | {"silence": 8}
"""A machine that stands still for some seconds makes no run silent; a clock that is off would."""


@pytest.mark.parametrize("seconds", [30.0, -50.0])
def test_hosts_that_differ_run_one_job_once(
    redis: Redis, valkey_url: str, tmp_path: Path, seconds: float
) -> None:
    host = WrongClock(tmp_path, seconds)
    with running(valkey_url, tmp_path, pace=PACE, host=host, scheduled_queues=["sample"]) as wrong:
        first = enqueue(redis, "hold")
        wait_until(lambda: runs(redis, first))
        with running(valkey_url, tmp_path, pace=PACE, scheduled_queues=["sample"]):
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
    with running(valkey_url, tmp_path, pace=PACE, host=host) as wrong:
        jobs = [enqueue(redis, "hold") for _ in range(5)]
        with running(valkey_url, tmp_path, pace=PACE) as right:
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
    with running(valkey_url, tmp_path, pace=PACE, host=host), running(valkey_url, tmp_path, pace=PACE):
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


@pytest.mark.parametrize("seconds", [10.0, 7200.0, -7200.0])
def test_when_the_host_of_redis_steps_no_job_runs_twice_and_those_of_the_dead_come_back(
    tmp_path: Path, seconds: float
) -> None:
    """All of it on one host, as under `outkeep up`: what was written before the step looks old, or new."""
    host = WrongClock(tmp_path, 0.0)
    with own_valkey(host) as valkey:
        valkey.start()
        redis, options = valkey.redis, {"pace": PACE, "host": host, "scheduled_queues": ["sample"]}
        with running(valkey.url, tmp_path, **options) as first, running(valkey.url, tmp_path, **options):
            jobs = [enqueue(redis, "await_file", str(tmp_path / "go")) for _ in range(6)]
            wait_until(lambda: all(runs(redis, job) for job in jobs))
            host.step_to(seconds)
            require_cleaned(redis, times=4)
            assert {runs(redis, job) for job in jobs} == {1}
            last = enqueue(redis, "await_file", str(tmp_path / "last"))
            wait_until(lambda: runs(redis, last))
            (tmp_path / "go").touch()
            wait_until(lambda: all(has(job, JobStatus.FINISHED)() for job in jobs))
            assert {runs(redis, job) for job in jobs} == {1}
            first.kill()
            lost = [enqueue(redis, "await_file", str(tmp_path / "last")) for _ in range(3)]
            wait_until(lambda: all(runs(redis, job) for job in lost))
        with running(valkey.url, tmp_path, **options):
            wait_until(lambda: all(runs(redis, job) == 2 for job in lost))
            (tmp_path / "last").touch()
            wait_until(lambda: all(has(job, JobStatus.FINISHED)() for job in [last, *lost]))
            assert_clean(redis)


@pytest.mark.parametrize("frozen", ["redis", "worker", "both"])
def test_what_stood_still_for_long_is_not_taken_for_dead_by_itself(tmp_path: Path, frozen: str) -> None:
    """As a machine that is suspended: nobody could send a heartbeat, and whoever wakes up first cleans up."""
    with own_valkey() as valkey:
        valkey.start()
        redis = valkey.redis
        with running(valkey.url, tmp_path, pace=PACE) as worker:
            jobs = [enqueue(redis, "await_file", str(tmp_path / "go")) for _ in range(6)]
            wait_until(lambda: all(runs(redis, job) for job in jobs))
            send = {"redis": [valkey.signal], "worker": [worker.send], "both": [valkey.signal, worker.send]}
            for stop in send[frozen]:
                stop(signal.SIGSTOP)
            threading.Event().wait(PACE["silence"] + 3)
            for go_on in send[frozen]:
                go_on(signal.SIGCONT)
            require_cleaned(redis, times=3)
            (tmp_path / "go").touch()
            wait_until(lambda: all(has(job, JobStatus.FINISHED)() for job in jobs))
            assert {runs(redis, job) for job in jobs} == {1}
            assert_clean(redis)
