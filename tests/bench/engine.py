#!/usr/bin/env python
"""What an empty job costs in our engine, on a durable Valkey."""

import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from app.valkey.server import Embedded
from workers.engine.async_worker import AsyncWorker

JOBS = 2000
NAME = "math.sqrt"


async def nothing(_job: Job, number: int) -> int:
    return number


def cost(redis: Redis, count: int) -> None:
    """Print the costs of one job."""
    queue = Queue("bench", connection=redis, serializer=JSONSerializer)
    prepared = [Queue.prepare_data(NAME, (4,), result_ttl=60, timeout=60) for _ in range(count)]
    queue.enqueue_many(prepared)
    server, own = psutil.Process(redis.info("server")["process_id"]), psutil.Process()

    def seen() -> tuple[float, float, float, int]:
        spent = [sum(one.cpu_times()[:2]) for one in (own, server)]
        return time.monotonic(), *spent, redis.info("stats")["total_reads_processed"]

    before = seen()
    AsyncWorker("bench", connection=redis, jobs=lambda: nullcontext({NAME: nothing})).work(burst=True)
    assert queue.count == 0
    assert queue.finished_job_registry.count >= count
    seconds, cpu, valkey, reads = (after - was for after, was in zip(seen(), before, strict=True))
    print(
        f"{f'{count} jobs':12}{count / seconds:8.0f} a second  {1000 * cpu / count:6.2f} ms of CPU"
        f"  {1000 * valkey / count:6.2f} ms of Valkey  {reads / count:6.2f} reads that it answers"
    )


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Embedded(Path(folder)) as valkey,
        Redis.from_url(valkey.url) as redis,
    ):
        for count in (JOBS // 20, JOBS):
            redis.flushall()
            cost(redis, count)


if __name__ == "__main__":
    main()
