"""Run one worker process: `python -m workers persist|notify|handle`, as `outkeep work` does."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping

from redis import Redis
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError  # noqa: A004

from app import lifeline, telemetry
from app.core.errors import ConfigurationError, Permanent
from app.core.names import HANDLE_QUEUE, NOTIFY_QUEUE, PERSIST_QUEUE
from app.deployment import Deployment, connect, prepare
from workers import handle
from workers.async_worker import AsyncWorker
from workers.services import ASYNCHRONOUS

SCHEDULED = (PERSIST_QUEUE, NOTIFY_QUEUE, HANDLE_QUEUE)
"""Each asynchronous worker offers to start the delayed retries of all our queues; one of them does."""

log = logging.getLogger("outkeep.worker")


def main(arguments: list[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Work until SIGTERM; exit code 0, 1 after a failure, 2 for a configuration that is refused."""
    parser = argparse.ArgumentParser(prog="python -m workers")
    parser.add_argument("queue", choices=sorted([*ASYNCHRONOUS, HANDLE_QUEUE]))
    parser.add_argument("--path", default=".", help="folder from which handler code is imported")
    parser.add_argument("--lifeline", action="store_true", help="end when standard input is closed")
    options = parser.parse_args(arguments)
    if options.lifeline:
        lifeline.watch()
    try:
        settings, handlers = prepare(environment)
        telemetry.configure(settings.log_level, settings.log_format)
        deployment = connect(settings, handlers)
    except ConfigurationError as error:
        for problem in error.problems:
            print(f"outkeep: {problem}", file=sys.stderr)  # noqa: T201
        return 2
    redis = _wait_for_redis(deployment.redis_url)
    try:
        _work(options.queue, options.path, deployment, redis)
    except Permanent as error:
        log.critical("the worker cannot go on: %s", error.message)
        return 1
    return 0


def _work(queue: str, path: str, deployment: Deployment, redis: Redis) -> None:
    if queue == HANDLE_QUEUE:
        sys.path.insert(0, path)
        handle.worker(redis, frozenset()).work(logging_level="WARNING")
        return
    opened = ASYNCHRONOUS[queue]
    slots = deployment.settings.slots
    log.info("worker started", extra={"queue": queue, "slots": slots})
    AsyncWorker(
        queue,
        connection=redis,
        jobs=lambda: opened(deployment, redis),
        slots=slots,
        scheduled_queues=SCHEDULED,
    ).work()


def _wait_for_redis(url: str) -> Redis:
    redis = Redis.from_url(url)
    said = False
    while True:
        try:
            redis.ping()
        except (ConnectionError, TimeoutError, BusyLoadingError) as error:
            if not said:
                log.warning("waiting for Redis: %s", type(error).__name__)
            said = True
            time.sleep(1)
        else:
            return redis


if __name__ == "__main__":
    sys.exit(main())
