"""One worker process: what `python -m workers persist|notify|handle…` runs, as `outkeep work` does."""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from functools import partial
from pathlib import Path

from redis import Redis
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError

from app.accept.group_commit import GroupCommit
from app.clock import lend_to_rq
from app.core.bucket_faults import redis_fault
from app.core.errors import ConfigurationError, Permanent
from app.core.fleet import Process
from app.core.names import HANDLE_QUEUE, NOTIFY_QUEUE, PERSIST_QUEUE
from app.deployment import Deployment, connect, prepare
from app.health.presence import Presence, compare, process_of
from app.maintain.backlog import queues_of_users
from app.storage.identity import Identity
from app.storage.store import Storage
from app.telemetry import logs as telemetry
from app.telemetry.interrupts import Ending
from app.telemetry.redaction import secrets_of
from app.telemetry.resources import give_back_large_blocks, open_more_files
from app.up import lifeline
from app.valkey.client import connect as hasty
from app.valkey.client import expect_redis, find_redis
from app.valkey.processes import bounded, in_child
from workers.engine import handle, running
from workers.engine.async_worker import AsyncWorker
from workers.repair.reconciler import reconciling
from workers.repair.sweep import sweeper_of
from workers.services import ASYNCHRONOUS

OURS = (PERSIST_QUEUE, NOTIFY_QUEUE, HANDLE_QUEUE)

FIRST_LOOK, LOOK = 20, 5
"""Seconds that a worker that forks waits for the storage, at its start and later."""

log = logging.getLogger("outkeep.worker")


def main(arguments: list[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Work until SIGTERM; exit code 0, 1 after a failure, 2 for a configuration that is refused."""
    options = _parsed(arguments)
    queues, forks = list(dict.fromkeys(options.queues)), HANDLE_QUEUE in options.queues
    if options.lifeline:
        if forks:
            lifeline.watch_without_thread()
        else:
            lifeline.watch()
    give_back_large_blocks()
    if not forks:
        open_more_files()  # functions of others may not stand more than 1,024
    ending = Ending()
    try:
        settings, handlers = prepare(environment, forks=forks)
        secrets = secrets_of(settings, handlers)
        telemetry.configure(settings.log_level, settings.log_format, role=" ".join(queues), secrets=secrets)
        deployment = connect(settings, handlers, expect_redis if options.lifeline else find_redis)
        redis = Redis.from_url(deployment.redis_url)
        _wait_for(redis, ending)
        storage_id = _compared(deployment, forks=forks)
    except ConfigurationError as error:
        for problem in error.problems:
            print(f"outkeep: {problem}", file=sys.stderr)  # noqa: T201
        return 2
    lend_to_rq(deployment.clock)
    try:
        _work_on(queues, options.path, deployment, redis, storage_id, ending=ending)
    except Permanent as error:
        log.critical("the worker cannot go on: %s", error.message)
        return 1
    return 0


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers")
    parser.add_argument("queues", nargs="+", choices=sorted([*ASYNCHRONOUS, HANDLE_QUEUE]))
    parser.add_argument("--path", default=".", help="folder from which handler code is imported")
    parser.add_argument("--lifeline", action="store_true", help="end when standard input is closed")
    options = parser.parse_args(arguments)
    if HANDLE_QUEUE in options.queues and len(set(options.queues)) > 1:
        parser.error(f"{HANDLE_QUEUE} forks for each job, and so has a process of its own")
    return options


def _compared(deployment: Deployment, *, forks: bool) -> str | None:
    """The id of the storage, if it can be asked; raises `ConfigurationError` when it is not that of Redis."""
    try:
        if forks:
            found, *problems = in_child(bounded, FIRST_LOOK, compare, deployment)
        else:
            found, *problems = compare(deployment)
    except ChildProcessError:
        return None  # it hangs; asked again while the worker runs
    if problems:
        raise ConfigurationError(problems)
    return found or None


def _work_on(
    queues: Sequence[str],
    path: str,
    deployment: Deployment,
    redis: Redis,
    storage_id: str | None,
    *,
    ending: Ending,
) -> None:
    while True:
        _wait_for(redis, ending)
        with suppress(RedisError):  # it went away again before the work began
            if HANDLE_QUEUE in queues:
                return _work_for_users(path, deployment, redis, storage_id, ending=ending)
            return _work(queues, deployment, redis, storage_id, ending=ending)


def _work_for_users(
    path: str, deployment: Deployment, redis: Redis, storage_id: str | None, *, ending: Ending
) -> None:
    """Run functions of users. It forks, so nothing of it may be in a thread: it asks for the time itself."""
    process = process_of(deployment, HANDLE_QUEUE, storage_id)
    sys.path.append(str(Path(path).absolute()))  # last, so that it replaces nothing that we run on
    storage = partial(Storage, deployment.settings.storage_url)
    log.info("worker started", extra={"queue": HANDLE_QUEUE})
    here = Presence(hasty(deployment.redis_url), process, on_refused=end_this_process, clock=deployment.clock)

    def say() -> None:
        here.say_hopefully()
        if here.process.storage is None:  # it could not be asked at the start
            with suppress(RedisError, ChildProcessError):
                found, *problems = in_child(bounded, LOOK, compare, deployment)
                here.learn(found, problems)

    functions = handle.listed(deployment.handlers)
    worker_of_functions = handle.worker(redis, functions, storage, clock=deployment.clock, on_beat=say)
    ending.check()
    worker_of_functions.work(logging_level="WARNING")
    here.say_hopefully(ends=True)


def _work(
    queues: Sequence[str], deployment: Deployment, redis: Redis, storage_id: str | None, *, ending: Ending
) -> None:
    """Work on queues that wait on networks: a loop for each, all on one event loop."""
    users = queues_of_users(deployment.handlers, redis)
    commit = GroupCommit(redis)
    workers: list[AsyncWorker] = []
    with ExitStack() as stack:
        asked = stack.enter_context(closing(hasty(deployment.redis_url)))
        for queue in queues:
            log.info("worker started", extra={"queue": queue, "slots": deployment.settings.slots})
            workers.append(
                AsyncWorker(
                    queue,
                    connection=redis,
                    jobs=partial(ASYNCHRONOUS[queue], deployment, redis),
                    slots=deployment.settings.slots,
                    # Each process offers to start the delayed retries of all queues; one of them does.
                    scheduled_queues=[] if workers else sorted({*OURS, *users}),
                    clock=deployment.clock,
                    commit=commit,
                )
            )
        stack.enter_context(deployment.clock.following(asked))
        for queue in queues:
            stack.enter_context(_present(asked, process_of(deployment, queue, storage_id), deployment))
        main = PERSIST_QUEUE if PERSIST_QUEUE in queues else queues[0]
        stack.enter_context(sweeper_of(main, deployment, users))
        stack.enter_context(reconciling(main, deployment))
        ending.check()
        running.run(workers)


def _present(redis: Redis, process: Process, deployment: Deployment) -> AbstractContextManager[None]:
    """Say what this process is while the block lasts. It ends where Redis belongs to another storage."""
    identity = Identity(redis, Storage(deployment.settings.storage_url))
    return Presence(redis, process, identity, end_this_process, clock=deployment.clock).kept()


def end_this_process() -> None:
    """Ask this process to stop, in good order; its next start is refused."""
    os.kill(os.getpid(), signal.SIGTERM)


def _wait_for(redis: Redis, ending: Ending) -> None:
    said = ""
    while (reason := _what_is_missing(redis)) is not None:
        if reason != said:
            log.warning("waiting for Redis: %s", reason)
        said = reason
        time.sleep(1)
        ending.check()
    if said:
        log.info("Redis answers")


def _what_is_missing(redis: Redis) -> str | None:
    try:
        redis.ping()
    except AuthenticationError:
        return "it refuses the user or password of REDIS_URL"
    except BusyLoadingError:
        return "it is loading its data"
    except RedisError as error:
        return redis_fault(str(error)) or f"it does not answer ({type(error).__name__})"
    return None
