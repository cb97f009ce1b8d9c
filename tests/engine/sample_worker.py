"""A worker process for tests: `python -m tests.engine.sample_worker URL [options as JSON]`."""

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import redis.asyncio
import redis.exceptions
from redis import Redis
from rq import Retry
from rq.job import Job

from app.clock import Clock, lend_to_rq
from app.valkey.client import connect
from workers.engine.async_worker import AsyncWorker
from workers.engine.intake import Taken
from workers.engine.job import JobFunction
from workers.engine.patient_worker import Pace

QUEUE = "sample"


async def double(client: redis.asyncio.Redis, job: Job, number: int) -> int:
    return number * 2


async def hold(client: redis.asyncio.Redis, job: Job, *, last: str = "return") -> str:
    """Tell that it runs, wait for an entry in `gate:<id>`, then return or raise."""
    await client.rpush(f"runs:{job.id}", str(os.getpid()))
    while not await client.blpop([f"gate:{job.id}"], 1):  # much less than the time-out of the client
        pass
    if last == "raise":
        raise ValueError("told to raise")
    return "held"


async def await_file(client: redis.asyncio.Redis, job: Job, path: str) -> None:
    """Wait for a file, without Redis."""
    await client.rpush(f"runs:{job.id}", str(os.getpid()))
    while not await asyncio.to_thread(Path(path).exists):  # noqa: ASYNC110  # the event is in another process
        await asyncio.sleep(0.02)


async def hang(client: redis.asyncio.Redis, job: Job) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await client.rpush("cancelled", job.id)


async def fail(client: redis.asyncio.Redis, job: Job) -> None:
    await client.incr(f"failures:{job.id}")
    raise ValueError("always")


async def give_up(client: redis.asyncio.Redis, job: Job) -> None:
    await client.incr(f"failures:{job.id}")
    job.retries_left = 0
    raise ValueError("for good")


async def again(client: redis.asyncio.Redis, job: Job) -> Retry | str:
    return "done" if job.number_of_retries else Retry(max=3, interval=1)


async def block(client: redis.asyncio.Redis, job: Job) -> None:
    time.sleep(5)  # noqa: ASYNC251  # the fault that the watchdog is for


async def leave(client: redis.asyncio.Redis, job: Job) -> None:
    sys.exit(3)


async def stuck_thread(client: redis.asyncio.Redis, job: Job) -> None:
    await client.rpush(f"runs:{job.id}", str(os.getpid()))
    await asyncio.to_thread(time.sleep, 600)


JOBS = (double, hold, await_file, hang, fail, give_up, again, block, leave, stuck_thread)


def _named() -> list[tuple[str, JobFunction]]:
    return [(f"sample.{function.__name__}", function) for function in JOBS]


@asynccontextmanager
async def open_jobs(
    url: str, problem: str | None, knows: Sequence[str]
) -> AsyncIterator[Mapping[str, JobFunction]]:
    if problem:
        raise RuntimeError(problem)
    async with redis.asyncio.Redis.from_url(url, max_connections=200, socket_timeout=20) as client:
        await client.rpush("context", "entered")
        own = {name: partial(function, client) for name, function in _named()}
        yield own | dict.fromkeys(knows, partial(double, client))
        with suppress(redis.exceptions.ConnectionError):
            await client.rpush("context", "left")


class DiesWhenItTakes(AsyncWorker):
    """Killed before it begins what it has taken."""

    def _begin(self, taken: Taken, started_at: datetime) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def main(url: str, **options: Any) -> None:
    logging.basicConfig(level="INFO", format="%(name)s %(levelname)s %(message)s")
    kind = DiesWhenItTakes if options.pop("dies", False) else AsyncWorker
    pace = Pace(**options.pop("pace", {}))
    problem, knows = options.pop("problem", None), options.pop("knows", ())
    clock = Clock()
    lend_to_rq(clock)
    worker = kind(
        QUEUE,
        connection=Redis.from_url(url),
        jobs=lambda: open_jobs(url, problem, knows),
        pace=pace,
        clock=clock,
        **options,
    )
    with closing(connect(url)) as asked, clock.following(asked):
        worker.work()


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}"))
