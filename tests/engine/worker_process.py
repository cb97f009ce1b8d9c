"""Start worker processes, fill their queue, and wait for what Redis shows."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, Retry
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from tests import forked
from tests.engine.sample_worker import QUEUE
from tests.wrong_clock import WrongClock

ROOT = Path(__file__).parents[2]

PATIENCE = 60.0
"""Seconds, for processes that start one after another on a busy machine."""

FAST: dict[str, Any] = {"beat": 1, "silence": 3, "maintenance": 1, "stuck": 1, "worker_ttl": 4}


def wait_until(condition: Callable[[], Any], *, seconds: float = PATIENCE) -> float:
    """Poll until `condition` holds; return the seconds that took. A Redis that is away means `not yet`."""
    began = time.monotonic()
    while True:
        try:
            if condition():
                return time.monotonic() - began
        except RedisError:
            pass
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.02)


def require_cleaned(redis: Redis, *, times: int = 1, queue: str = QUEUE) -> None:
    """Wait until maintenance of some worker has run so often: it removes what has expired."""
    for _ in range(times):
        redis.zadd(f"rq:finished:{queue}", {"expired": 1})
        wait_until(lambda: redis.zscore(f"rq:finished:{queue}", "expired") is None)


class WorkerProcess:
    """One worker process; its output is in `log`."""

    def __init__(self, url: str, log: Path, *, host: WrongClock | None = None, **options: Any) -> None:
        environment = os.environ | (host.environment if host else {})
        self._log = log
        with log.open("ab") as out:
            command = [sys.executable, "-m", "tests.engine.sample_worker", url, json.dumps(options)]
            self.process = forked.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait(self, *, seconds: float = PATIENCE) -> int:
        return self.process.wait(timeout=seconds)


@contextmanager
def running(url: str, folder: Path, **options: Any) -> Iterator[WorkerProcess]:
    """A worker that is registered in Redis, killed at the end if it still lives."""
    log = folder / f"worker-{time.monotonic_ns()}.log"
    worker = WorkerProcess(url, log, **options)
    try:
        if not options.get("problem"):
            with Redis.from_url(url) as redis:
                wait_until(lambda: registered(redis, worker) or worker.process.poll() is not None)
        yield worker
    except BaseException:
        print(worker.log)
        raise
    finally:
        worker.kill()


def registered(redis: Redis, worker: WorkerProcess) -> bool:
    """True once the worker has reported from its loop."""
    shown = [redis.hmget(key, "pid", "state") for key in redis.smembers("rq:workers")]
    pid = str(worker.process.pid).encode()
    return any(found == pid and state not in {None, b"started"} for found, state in shown)


def sample_queue(redis: Redis) -> Queue:
    return Queue(QUEUE, connection=redis, serializer=JSONSerializer)


def enqueue(redis: Redis, name: str, *args: Any, **options: Any) -> Job:
    """Put `sample.<name>` on the queue, with three retries unless told otherwise."""
    options = {"retry": Retry(max=3), "result_ttl": 60, "failure_ttl": 60, "job_timeout": 60, **options}
    return sample_queue(redis).enqueue(f"sample.{name}", *args, **options)


def status(job: Job) -> JobStatus:
    return job.get_status(refresh=True)


def has(job: Job, wanted: JobStatus) -> Callable[[], bool]:
    return lambda: status(job) == wanted


def runs(redis: Redis, job: Job) -> int:
    return int(redis.llen(f"runs:{job.id}"))


def open_gate(redis: Redis, job: Job) -> None:
    redis.rpush(f"gate:{job.id}", "go")


def failure(job: Job) -> str:
    """Why a job stands with the failed jobs."""
    result = job.latest_result()
    assert result is not None
    return result.exc_string or ""


def assert_clean(redis: Redis) -> None:
    """No trace of running work: registries, intermediate list, queue."""
    queue = sample_queue(redis)
    assert queue.count == 0
    assert redis.llen(queue.intermediate_queue_key) == 0
    assert redis.zcard(queue.started_job_registry.key) == 0
    assert redis.zcard(queue.scheduled_job_registry.key) == 0
