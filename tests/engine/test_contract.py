"""What our engine leaves in Redis at each step is what RQ's own worker leaves, field by field.

Also both beside each other on one live queue, and RQ's own command line over it.
"""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from redis import Redis
from rq import Queue, Retry, SimpleWorker, Worker
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from tests.engine.worker_process import enqueue, has, running, sample_queue, wait_until
from workers.engine.async_worker import AsyncWorker
from workers.engine.job import JobFunction

QUEUE = "contract"
NAME = f"{__name__}.work"
HERE: dict[str, Callable[[], Any]] = {}
"""What the job does: the two workers run in this process."""


def work(how: str) -> Any:
    """The function of the job as RQ's worker imports it."""
    return HERE[how]()


async def _work(job: Job, how: str) -> Any:
    return work(how)


def _fail() -> None:
    raise ValueError("told to")


def retried() -> Retry:
    return Retry(max=3, interval=60)


def retried_at_once() -> Retry:
    return Retry(max=1)


class Shown:
    """All that Redis holds, with what differs from run to run replaced by a word."""

    def __init__(self, redis: Redis, job: Job, worker: str) -> None:
        self._redis: Any = redis
        self._words = {job.id: "JOB", worker: "WORKER"}
        self._words |= {execution.id: "EXECUTION" for execution in job.get_executions()}

    def keys(self) -> dict[str, Any]:
        keys = [key for key in self._redis.keys("rq:*") if not _is_of_the_loop(key.decode())]
        return {self._named(key): self._value(key) for key in keys}

    def _value(self, key: bytes) -> Any:
        kind, redis = self._redis.type(key), self._redis
        lives = "for ever" if redis.ttl(key) < 0 else "for a while"
        if kind == b"hash":
            return lives, {
                self._named(name): self._named(value, name) for name, value in redis.hgetall(key).items()
            }
        if kind == b"zset":
            return lives, [self._named(one) for one in redis.zrange(key, 0, -1)]
        if kind == b"stream":
            return lives, [
                {name.decode(): self._named(value, name) for name, value in entry.items()}
                for _, entry in redis.xrange(key)
            ]
        if kind == b"set":
            return lives, sorted(self._named(one) for one in redis.smembers(key))
        return lives, [self._named(one) for one in redis.lrange(key, 0, -1)]

    def _named(self, text: bytes | str, field: bytes = b"") -> str:
        if field in {b"data", b"exc_string", b"return_value", b"execution_id"}:
            return "SOMETHING"  # compressed, with paths and ids in it
        shown = text if isinstance(text, str) else text.decode()
        for word, name in self._words.items():
            shown = shown.replace(word, name)
        shown = re.sub(r"\b[0-9a-f]{32}\b", "EXECUTION", shown)
        shown = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", shown)
        return re.sub(r"^\d{10}(\.\d+)?$", "SECONDS", shown)


def _is_of_the_loop(key: str) -> bool:
    """What a worker says of itself, which is not part of the books of jobs."""
    return key.startswith(("rq:worker", "rq:clean", "rq:scheduler", "rq:group", "rq:maintenance")) and not (
        key.endswith(":executions")
    )


def of_the_worker(redis: Redis, name: str) -> list[Any]:
    counted: list[Any] = redis.hmget(f"rq:worker:{name}", "successful_job_count", "failed_job_count")
    return counted


def theirs(redis: Redis) -> None:
    SimpleWorker([Queue(QUEUE, connection=redis, serializer=JSONSerializer)], name="one", connection=redis,
                 serializer=JSONSerializer).work(burst=True, logging_level="CRITICAL")  # fmt: skip


def ours(redis: Redis) -> None:
    jobs: dict[str, JobFunction] = {NAME: _work}
    AsyncWorker(QUEUE, connection=redis, name="one", jobs=lambda: nullcontext(jobs)).work(burst=True)


ENDINGS: dict[str, tuple[Callable[[], Any], dict[str, Any], int]] = {
    "returned": (lambda: {"a": 1}, {}, 1),
    "returned nothing": (lambda: None, {"result_ttl": 60, "meta": {"a": 1}}, 1),
    "kept no result": (lambda: 7, {"result_ttl": 0}, 1),
    "kept for ever": (lambda: 7, {"result_ttl": -1}, 1),
    "failed": (_fail, {}, 1),
    "failed, kept for a while": (_fail, {"failure_ttl": 60, "description": "it fails"}, 1),
    "failed, again at once": (_fail, {"retry": Retry(max=1)}, 2),
    "failed, again later": (_fail, {"retry": Retry(max=3, interval=[60, 90])}, 1),
    "asked for another run": (retried, {}, 1),
    "asked for another run at once": (retried_at_once, {}, 2),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_run_leaves_what_rq_leaves(redis: Redis, ending: str) -> None:
    does, options, runs = ENDINGS[ending]
    seen: dict[str, list[Any]] = {}
    for name, go in (("theirs", theirs), ("ours", ours)):
        redis.flushall()
        shown: list[Any] = []
        queue = Queue(QUEUE, connection=redis, serializer=JSONSerializer)
        job = queue.enqueue(NAME, "work", job_id="the-job", job_timeout=60, **options)

        def look(shown: list[Any] = shown, job: Job = job) -> Any:
            shown.append(("begun", Shown(redis, job, "one").keys()))
            return does()

        HERE["work"] = look
        go(redis)
        shown.append(("ended", Shown(redis, job, "one").keys(), of_the_worker(redis, "one")))
        seen[name] = shown
    assert len(seen["ours"]) == runs + 1
    assert json.dumps(seen["ours"], indent=1, default=str, sort_keys=True) == (
        json.dumps(seen["theirs"], indent=1, default=str, sort_keys=True)
    )


def given_up_by_theirs(redis: Redis) -> None:
    queue = Queue(QUEUE, connection=redis, serializer=JSONSerializer)
    SimpleWorker([queue], connection=redis, serializer=JSONSerializer).clean_registries()  # type: ignore[no-untyped-call]


def given_up_by_ours(redis: Redis) -> None:
    AsyncWorker(QUEUE, connection=redis, jobs=lambda: nullcontext({})).run_maintenance_tasks()


@pytest.mark.parametrize("retry", [None, Retry(max=2), Retry(max=2, interval=60)])
def test_a_run_of_a_dead_worker_is_given_up_as_rq_does(redis: Redis, retry: Retry | None) -> None:
    seen = []
    for give_up in (given_up_by_theirs, given_up_by_ours):
        redis.flushall()
        queue = Queue(QUEUE, connection=redis, serializer=JSONSerializer)
        job = queue.enqueue(NAME, "work", job_id="the-job", job_timeout=60, retry=retry)
        redis.delete(queue.key)
        redis.hset(job.key, mapping={"status": "started", "worker_name": "dead"})
        redis.zadd(queue.started_job_registry.key, {f"{job.id}:{'0' * 32}": 1})
        give_up(redis)
        seen.append(Shown(redis, job, "dead").keys())
    assert seen[0] == seen[1]


def test_those_that_depend_on_a_job_go_on_as_with_rq(redis: Redis) -> None:
    queue = Queue(QUEUE, connection=redis, serializer=JSONSerializer)
    HERE.update(work=lambda: 1, fail=_fail)
    good, bad = (queue.enqueue(NAME, how, job_timeout=60) for how in ("work", "fail"))
    after = queue.enqueue(NAME, "work", depends_on=good)
    never = queue.enqueue(NAME, "work", depends_on=bad)
    ours(redis)
    ours(redis)
    assert [job.get_status() for job in (good, after, bad, never)] == [
        JobStatus.FINISHED, JobStatus.FINISHED, JobStatus.FAILED, JobStatus.DEFERRED,
    ]  # fmt: skip


def test_what_a_stock_worker_took_and_never_began_is_begun_by_ours(
    redis: Redis, valkey_url: str, tmp_path: Any
) -> None:
    job, queue = enqueue(redis, "double", 4), sample_queue(redis)
    redis.lmove(queue.key, queue.intermediate_queue_key)
    with running(valkey_url, tmp_path, pace={"maintenance": 1, "stuck": 1}):
        wait_until(has(job, JobStatus.FINISHED))


def rq(url: str, *words: str) -> str:
    command = [sys.executable, "-m", "rq.cli", *words, "--url", url]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_stock_workers_and_rqs_commands_work_beside_ours_on_a_live_queue(
    redis: Redis, valkey_url: str, tmp_path: Any
) -> None:
    queue, enough = sample_queue(redis), threading.Event()

    def feed() -> None:
        with Redis.from_url(valkey_url) as own:
            while not enough.wait(0.02):
                Queue("sample", connection=own, serializer=JSONSerializer).enqueue(
                    "math.sqrt", 4, result_ttl=60
                )

    failing = [enqueue(redis, "fail", retry=None) for _ in range(3)]
    feeding = threading.Thread(target=feed)
    command = [
        sys.executable,
        "-m",
        "rq.cli",
        "worker",
        "-S",
        "json",
        "sample",
        "--url",
        valkey_url,
        "--quiet",
    ]
    with running(valkey_url, tmp_path, knows=["math.sqrt"]), subprocess.Popen(command) as stock:
        try:
            wait_until(lambda: len(Worker.all(connection=redis)) == 2)
            wait_until(lambda: all(has(job, JobStatus.FAILED)() for job in failing))
            feeding.start()
            counts = {}
            wait_until(
                lambda: (
                    [
                        counts.update({worker.name: worker.successful_job_count})
                        for worker in Worker.all(connection=redis)
                    ]
                    and len(counts) == 2
                    and all(number > 5 for number in counts.values())
                )
            )
            info = rq(valkey_url, "info", "--raw")
            assert re.search(r"^queue sample \d+, \d+ executing, \d+ finished, 3 failed$", info, re.M), info
            assert len(re.findall(r"^worker \S+ .* sample\. jobs: \d+ finished", info, re.M)) == 2, info
            rq(valkey_url, "requeue", "--queue", "sample", "-S", "json", failing[0].id)
            wait_until(lambda: len(failing[0].results()) > 1 and has(failing[0], JobStatus.FAILED)())
        finally:
            enough.set()
            feeding.join()
            wait_until(lambda: queue.count == 0 and queue.started_job_registry.count == 0)
            stock.terminate()
    assert queue.failed_job_registry.count == 3
