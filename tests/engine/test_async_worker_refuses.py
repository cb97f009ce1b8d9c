"""What somebody plants in Redis is not run: it ends with the failed jobs, and the worker goes on."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Callback, Retry
from rq.job import Job, JobStatus
from rq.webhook import Webhook

from tests.engine.worker_process import (
    assert_clean,
    enqueue,
    failure,
    has,
    running,
    sample_queue,
    wait_until,
)


class Planted:
    """Unpickling this leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


def plant(redis: Redis, job_id: str, data: bytes, **fields: Any) -> Job:
    """Write a job hash by hand, as an attacker would, and push its id."""
    queue = sample_queue(redis)
    job = Job(job_id, connection=redis, serializer=queue.serializer)
    mapping: dict[Any, Any] = {"origin": queue.name, "status": "queued", "retries_left": 3, "timeout": 60}
    redis.hset(job.key, mapping=mapping | {"data": data} | fields)
    queue.push_job_id(job_id)
    return job


def payload(*parts: Any) -> bytes:
    return json.dumps(parts).encode()


def test_a_planted_job_is_not_run_uses_up_no_retries_and_says_why(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    command = f"touch {marker}"
    touch = {"on_success": Callback("os.system"), "on_failure": Callback("os.system")}
    planted = {
        "'os.system' is not on this worker's list": plant(
            redis, "system", payload("os.system", None, [command], {})
        ),
        "'tests.engine.sample_worker.double'": plant(
            redis, "path", payload("tests.engine.sample_worker.double", None, [1], {})
        ),
        "'no such module.x'": plant(redis, "module", payload("no such module.x", None, [], {})),
        "'[1]' is not on": plant(redis, "list", payload([1], None, [], {})),
        "is not of the form": plant(redis, "instance", payload("sample.double", {"a": 1}, [1], {})),
        "is not JSON of the form": plant(redis, "pickle", pickle.dumps(("os.system", None, (command,), {}))),
        "is not JSON": plant(redis, "bomb", pickle.dumps(Planted(marker))),
        "payload is not": plant(redis, "short", payload("sample.double")),
        "asks for success_callback_name": enqueue(redis, "double", 1, **touch),
        "asks for webhooks": enqueue(redis, "double", 1, webhooks=[Webhook("http://127.0.0.1:9/", "failed")]),
    }
    with running(valkey_url, tmp_path) as worker:
        for reason, job in planted.items():
            wait_until(has(job, JobStatus.FAILED))
            assert "job_refused" in failure(job) or "was not run" in failure(job)
            assert reason in failure(job)
            assert redis.hget(job.key, "retries_left") == b"0"
        good = enqueue(redis, "double", 1)
        wait_until(has(good, JobStatus.FINISHED))
        assert "Failed to send webhook" not in worker.log
        assert_clean(redis)
    assert sample_queue(redis).failed_job_registry.count == len(planted)
    assert not marker.exists()


@pytest.mark.parametrize("field", ["meta", "result"])
def test_a_pickle_beside_the_payload_is_not_loaded(
    redis: Redis, valkey_url: str, tmp_path: Path, field: str
) -> None:
    marker = tmp_path / "marker"
    with running(valkey_url, tmp_path):
        job = plant(
            redis,
            "beside",
            payload("sample.double", None, [4], {}),
            **{field: pickle.dumps(Planted(marker)), "result_ttl": 60},
        )
        wait_until(has(job, JobStatus.FINISHED))
    assert not marker.exists()


def test_entries_that_are_no_jobs_at_all_do_not_stop_the_worker(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    queue = sample_queue(redis)
    with running(valkey_url, tmp_path, slots=1, pace={"maintenance": 1, "stuck": 1}) as worker:
        plant(redis, "numbers", payload("sample.double", None, [1], {}), timeout="soon", result_ttl="x")
        plant(redis, "dates", payload("sample.double", None, [1], {}), created_at="yesterday")
        redis.rpush(queue.key, "../../etc/passwd", "not:an:id", b"\xff\xfe", "gone")
        good = enqueue(redis, "double", 1)
        wait_until(has(good, JobStatus.FINISHED))
        wait_until(lambda: redis.llen(queue.intermediate_queue_key) == 0)
        assert worker.process.poll() is None
    assert set(queue.failed_job_registry.get_job_ids()) == {"numbers", "dates"}
    for job_id in ("numbers", "dates"):
        assert "Error" in failure(Job(job_id, connection=redis, serializer=queue.serializer))


def test_a_planted_callback_is_not_run_when_the_job_is_found_abandoned(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    queue = sample_queue(redis)
    job = enqueue(redis, "double", 1, retry=Retry(max=1), on_failure=Callback("os.abort"))
    redis.lrem(queue.key, 0, job.id)
    redis.hset(job.key, "status", "started")
    redis.zadd(queue.started_job_registry.key, {f"{job.id}:execution": 1})
    with running(valkey_url, tmp_path, pace={"maintenance": 1}):
        wait_until(lambda: redis.zcard(queue.started_job_registry.key) == 0)
        wait_until(lambda: job.get_status() in {JobStatus.FAILED, JobStatus.FINISHED})
        assert_clean(redis)
