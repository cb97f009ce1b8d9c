"""The asynchronous worker at work: real processes, a real Valkey."""

import signal
import sys
from pathlib import Path

from redis import Redis
from rq import Retry, Worker
from rq.command import send_stop_execution_command
from rq.job import JobStatus

from tests import forked
from tests.engine.worker_process import (
    assert_clean,
    enqueue,
    failure,
    has,
    open_gate,
    running,
    runs,
    sample_queue,
    status,
    wait_until,
)


def test_many_jobs_run_at_the_same_time_and_rq_shows_the_truth(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    queue = sample_queue(redis)
    jobs = [enqueue(redis, "hold") for _ in range(35)]
    with running(valkey_url, tmp_path, slots=32) as worker:
        wait_until(lambda: sum(runs(redis, job) for job in jobs) == 32)
        wait_until(lambda: Worker.all(connection=redis)[0].get_state() == "busy")
        shown = Worker.all(connection=redis)
        assert [(w.pid, w.queue_names()) for w in shown] == [(worker.process.pid, ["sample"])]
        assert shown[0].current_execution_count == 32
        assert queue.started_job_registry.count == 32
        assert queue.count == 3
        info = forked.run(
            [sys.executable, "-m", "rq.cli", "info", "--url", valkey_url, "--raw"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "queue sample 3" in info.stdout
        assert "busy sample" in info.stdout
        for job in jobs:
            open_gate(redis, job)
        wait_until(lambda: all(status(job) == JobStatus.FINISHED for job in jobs))
        wait_until(lambda: Worker.all(connection=redis)[0].get_state() == "idle")
        assert Worker.all(connection=redis)[0].successful_job_count == 35
        assert [job.return_value(refresh=True) for job in jobs] == ["held"] * 35
        assert_clean(redis)
        assert redis.keys("rq:execution*") == []
        assert "hold" not in worker.log


def test_the_shared_context_is_open_before_the_first_job_and_left_after_the_last(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    with running(valkey_url, tmp_path) as worker:
        job = enqueue(redis, "hold")
        wait_until(lambda: runs(redis, job))
        worker.send(signal.SIGTERM)
        open_gate(redis, job)
        assert worker.wait() == 0
    assert status(job) == JobStatus.FINISHED
    assert redis.lrange("context", 0, -1) == [b"entered", b"left"]
    assert Worker.all(connection=redis) == []


def test_a_context_that_cannot_be_entered_ends_the_worker_with_its_error(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    with running(valkey_url, tmp_path, problem="no storage") as worker:
        assert worker.wait() == 1
        assert "RuntimeError: no storage" in worker.log
    assert Worker.all(connection=redis) == []


def test_a_job_over_its_time_is_cancelled_and_stands_with_the_failed_jobs(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    with running(valkey_url, tmp_path):
        job = enqueue(redis, "hang", job_timeout=1, retry=None)
        wait_until(has(job, JobStatus.FAILED))
    assert "JobTimeoutException: Task exceeded maximum timeout value (1 seconds)" in failure(job)
    assert redis.lrange("cancelled", 0, -1) == [job.id.encode()]
    assert job.id in sample_queue(redis).failed_job_registry


def test_a_returned_retry_waits_for_its_interval_and_runs_again(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    with running(valkey_url, tmp_path, scheduled_queues=["sample", "other"]):
        job = enqueue(redis, "again")
        wait_until(has(job, JobStatus.FINISHED))
        assert_clean(redis)
    assert job.return_value(refresh=True) == "done"
    assert redis.hmget(job.key, "number_of_retries", "retries_left") == [b"1", b"3"]


def test_a_job_that_raises_is_retried_and_then_fails(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    with running(valkey_url, tmp_path, scheduled_queues=["sample"]):
        job = enqueue(redis, "fail", retry=Retry(max=2, interval=[0, 1]))
        final = enqueue(redis, "give_up")
        wait_until(lambda: status(job) == status(final) == JobStatus.FAILED)
        assert_clean(redis)
    assert redis.get(f"failures:{job.id}") == b"3"
    assert redis.get(f"failures:{final.id}") == b"1"
    assert "ValueError: always" in failure(job)
    assert "ValueError: for good" in failure(final)


def test_one_bad_job_harms_no_other(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    with running(valkey_url, tmp_path) as worker:
        leaving = enqueue(redis, "leave", retry=None)
        wait_until(has(leaving, JobStatus.FAILED))
        blocking = enqueue(redis, "block")
        wait_until(has(blocking, JobStatus.FINISHED))
        good = enqueue(redis, "double", 21)
        wait_until(has(good, JobStatus.FINISHED))
        assert "a job blocks the loop" in worker.log
        assert "sample_worker.py" in worker.log
    assert "tried to end the worker with SystemExit" in failure(leaving)
    assert good.return_value(refresh=True) == 42


def test_rq_stops_one_execution(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    with running(valkey_url, tmp_path):
        job, other = enqueue(redis, "hang"), enqueue(redis, "hold")
        wait_until(lambda: len(job.get_executions()) == 1 and runs(redis, other))
        send_stop_execution_command(redis, job.id, job.get_executions()[0].id)
        wait_until(has(job, JobStatus.STOPPED))
        open_gate(redis, other)
        wait_until(has(other, JobStatus.FINISHED))


def test_a_suspended_worker_takes_nothing_until_it_is_resumed(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    with running(valkey_url, tmp_path):
        redis.set("rq:suspended", 1)
        wait_until(lambda: Worker.all(connection=redis)[0].get_state() == "suspended")
        job = enqueue(redis, "double", 1)
        assert sample_queue(redis).count == 1
        redis.delete("rq:suspended")
        wait_until(has(job, JobStatus.FINISHED))
