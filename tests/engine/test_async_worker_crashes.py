"""Kills, signals and outages: what was running comes back, what was done stays done."""

import signal
from pathlib import Path

import pytest
from redis import Redis
from rq import Worker
from rq.job import JobStatus
from rq.scheduler import RQScheduler

from tests.engine.worker_process import (
    FAST,
    WorkerProcess,
    assert_clean,
    enqueue,
    has,
    open_gate,
    registered,
    running,
    runs,
    sample_queue,
    status,
    wait_until,
)
from tests.own_valkey import OwnValkey


@pytest.mark.slow
def test_a_killed_worker_is_replaced_within_half_a_minute(
    redis: Redis, valkey_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = RQScheduler.get_locking_key("sample")
    with running(valkey_url, tmp_path, scheduled_queues=["sample"]) as doomed:
        jobs = [enqueue(redis, "hold") for _ in range(20)]
        wait_until(lambda: all(runs(redis, job) for job in jobs))
        owner = redis.get(lock)
        with running(valkey_url, tmp_path, scheduled_queues=["sample"]):
            doomed.kill()
            delayed = enqueue(redis, "again")
            schedule = wait_until(has(delayed, JobStatus.FINISHED), seconds=90)
            assert redis.get(lock) not in {owner, None}
            rest = wait_until(lambda: all(runs(redis, job) >= 2 for job in jobs), seconds=90)
            with capsys.disabled():
                print(
                    f"\nafter a kill: schedule back in {schedule:.1f} s, 20 jobs in {schedule + rest:.1f} s"
                )
            for job in jobs:
                open_gate(redis, job)
            wait_until(lambda: all(status(job) == JobStatus.FINISHED for job in jobs))
            assert_clean(redis)
    assert {redis.hget(job.key, "retries_left") for job in jobs} == {b"2"}


def test_the_registration_of_a_killed_worker_goes(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    with (
        running(valkey_url, tmp_path, pace=FAST) as doomed,
        running(valkey_url, tmp_path, pace=FAST) as other,
    ):
        doomed.kill()
        wait_until(lambda: redis.scard("rq:workers") == 1)
        assert registered(redis, other)


def test_a_job_taken_by_a_worker_killed_before_it_begins_it_comes_back(
    redis: Redis, valkey_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = sample_queue(redis)
    with running(valkey_url, tmp_path, dies=True) as doomed:
        job = enqueue(redis, "double", 1)
        assert doomed.wait() == -signal.SIGKILL
    assert (queue.count, queue.started_job_registry.count) == (0, 1)
    assert redis.llen(queue.intermediate_queue_key) == 0
    with running(valkey_url, tmp_path, pace=FAST):
        took = wait_until(has(job, JobStatus.FINISHED))
        with capsys.disabled():
            print(f"\na job that was taken only came back after {took:.1f} s at the fast pace")
        assert_clean(redis)


def test_a_run_that_was_given_up_has_no_say_about_the_outcome(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    with running(valkey_url, tmp_path, pace=FAST, slots=1) as stalled:
        job = enqueue(redis, "hold", last="raise", retry=None)
        again = enqueue(redis, "hold", last="return")
        wait_until(lambda: runs(redis, job))
        open_gate(redis, job)
        wait_until(lambda: runs(redis, again))
        stalled.send(signal.SIGSTOP)
        with running(valkey_url, tmp_path, pace=FAST) as other:
            wait_until(lambda: runs(redis, again) >= 2)
            open_gate(redis, again)
            stalled.send(signal.SIGCONT)
            open_gate(redis, again)
            wait_until(has(again, JobStatus.FINISHED))
            wait_until(lambda: "its outcome does not count" in stalled.log)
            other.send(signal.SIGTERM)
            assert other.wait() == 0
        stalled.send(signal.SIGTERM)
        assert stalled.wait() == 0
    assert status(again) == JobStatus.FINISHED
    assert redis.hget(again.key, "retries_left") == b"2"
    assert_clean(redis)


def test_sigterm_drains_what_runs_and_leaves_the_rest_queued(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    with running(valkey_url, tmp_path, slots=4) as worker:
        jobs = [enqueue(redis, "hold") for _ in range(4)]
        wait_until(lambda: all(runs(redis, job) for job in jobs))
        waiting = [enqueue(redis, "hold") for _ in range(3)]
        worker.send(signal.SIGTERM)
        for job in jobs:
            open_gate(redis, job)
        assert worker.wait() == 0
        assert {status(job) for job in jobs} == {JobStatus.FINISHED}
        assert {status(job) for job in waiting} == {JobStatus.QUEUED}
        assert sum(runs(redis, job) for job in waiting) == 0
        assert sample_queue(redis).count == 3
        assert redis.llen(sample_queue(redis).intermediate_queue_key) == 0
    assert Worker.all(connection=redis) == []


def test_jobs_that_outlast_the_drain_are_cut_off_and_run_again_elsewhere(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    with running(valkey_url, tmp_path, drain_timeout=0.5, pace=FAST) as worker:
        jobs = [enqueue(redis, "hang"), enqueue(redis, "stuck_thread"), enqueue(redis, "hold")]
        wait_until(lambda: runs(redis, jobs[1]) and runs(redis, jobs[2]))
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
        assert "3 running jobs are cut off" in worker.log
    assert {status(job) for job in jobs} == {JobStatus.STARTED}
    assert redis.lrange("cancelled", 0, -1) == [jobs[0].id.encode()]
    with running(valkey_url, tmp_path, pace=FAST):
        wait_until(lambda: runs(redis, jobs[2]) >= 2)


def signalled_again(worker: WorkerProcess) -> bool:
    """Signal until it ends; within the first second that is taken for an echo."""
    worker.send(signal.SIGTERM)
    return worker.process.poll() is not None


def test_a_second_sigterm_ends_the_worker_at_once(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    with running(valkey_url, tmp_path) as worker:
        job = enqueue(redis, "hold")
        wait_until(lambda: runs(redis, job))
        worker.send(signal.SIGTERM)
        wait_until(lambda: signalled_again(worker))
        assert worker.wait() == 1
    assert status(job) == JobStatus.STARTED


def test_work_goes_on_when_redis_was_away(valkey: OwnValkey, tmp_path: Path) -> None:
    redis, gate = valkey.redis, tmp_path / "gate"
    with running(valkey.url, tmp_path, pace=FAST, scheduled_queues=["sample"]) as worker:
        held, ending = enqueue(redis, "await_file", str(gate)), enqueue(redis, "again")
        wait_until(lambda: runs(redis, held) and status(ending) == JobStatus.SCHEDULED)
        valkey.kill()
        wait_until(lambda: "Redis does not serve" in worker.log)
        gate.touch()
        valkey.start()
        after = enqueue(redis, "double", 3)
        wait_until(lambda: {status(held), status(ending), status(after)} == {JobStatus.FINISHED})
        wait_until(lambda: "Redis is back after" in worker.log)
        wait_until(lambda: registered(redis, worker))
        assert worker.process.poll() is None
        assert_clean(redis)


def test_a_worker_whose_redis_came_back_empty_registers_again(valkey: OwnValkey, tmp_path: Path) -> None:
    redis = valkey.redis
    with running(valkey.url, tmp_path, pace=FAST, scheduled_queues=["sample"]) as worker:
        redis.flushall()
        wait_until(lambda: registered(redis, worker))
        job = enqueue(redis, "again")
        wait_until(has(job, JobStatus.FINISHED))


def test_a_worker_can_be_stopped_while_redis_is_away(valkey: OwnValkey, tmp_path: Path) -> None:
    with running(valkey.url, tmp_path, scheduled_queues=["sample"]) as worker:
        valkey.kill()
        wait_until(lambda: "Redis does not serve" in worker.log)
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
