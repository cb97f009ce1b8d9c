"""What Redis tells readiness and the doctor: about itself, about the workers and what waits for them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import cast

from redis import Redis
from redis.exceptions import RedisError, ResponseError
from rq.job import Job
from rq.scheduler import RQScheduler
from rq.suspension import WORKERS_SUSPENDED
from rq.worker.base import BaseWorker

from app import queues
from app.core import findings as rules
from app.core.findings import Finding, Level
from app.core.links import fingerprint
from app.core.names import (
    HANDLE_QUEUE,
    KEY_FINGERPRINT,
    NOTIFY_QUEUE,
    PERSIST_QUEUE,
    SWEPT,
    WRITE_PROBE,
)
from app.handler_states import HandlerStates

_OURS = (PERSIST_QUEUE, NOTIFY_QUEUE, HANDLE_QUEUE)

SILENCE = timedelta(seconds=30)
"""A worker that was not heard of for this long is taken for dead; each reports every few seconds."""


def check_redis(
    redis: Redis, keys: Sequence[bytes], handlers: Sequence[str], users: Sequence[str] = ()
) -> list[Finding]:
    """Every check that needs Redis; raises redis' errors when it does not answer.

    `keys` are those of this configuration, `handlers` the names of those that are told, `users` the queues
    that hold jobs of the user's.
    """
    findings = [*_server(redis), *_writes(redis)]
    try:
        findings += _rest(redis, keys, handlers, users, wrong=bool(findings))
    except ResponseError as error:
        # A cluster, or a user who may not do what we must.
        detail = f"refuses commands that are needed ({type(error).__name__}): {error}"
        findings.append(Finding(Level.FAIL, "redis", detail))
    return findings


def _rest(
    redis: Redis, keys: Sequence[bytes], handlers: Sequence[str], users: Sequence[str], *, wrong: bool
) -> list[Finding]:
    durable = durability(redis, severe=Level.FAIL)
    return [
        *(found for found in durable if not (wrong and found.level is Level.OK)),
        *_key(redis, keys),
        _clock(redis),
        *_workers(redis, users),
        scheduler(redis, users),
        _sweep(redis),
        *ages(redis, users),
        *_dead_letters(redis, users),
        *_switched_off(redis, handlers),
    ]


def _all(users: Sequence[str]) -> tuple[str, ...]:
    """Our queues, and those that users work off themselves."""
    return (*_OURS, *(name for name in users if name not in _OURS))


def _server(redis: Redis) -> list[Finding]:
    try:
        info = cast(dict[str, object], redis.info())
    except ResponseError:
        return [Finding(Level.WARN, "redis", "INFO is not allowed, so its version and role are unknown")]
    return rules.server(info)


def _writes(redis: Redis) -> Iterator[Finding]:
    try:
        redis.set(WRITE_PROBE, 1, px=1000)
    except ResponseError as error:
        detail = f"takes no writes ({type(error).__name__}): nothing is stored until it does"
        yield Finding(Level.FAIL, "redis", detail)


def _key(redis: Redis, keys: Sequence[bytes]) -> Iterator[Finding]:
    known = cast(bytes | None, redis.get(KEY_FINGERPRINT))
    if not keys or known is None:
        return
    if known.decode(errors="replace") in map(fingerprint, keys):
        yield Finding(Level.OK, "secret key", "the same as in the other processes")
    else:
        detail = "OUTKEEP_SECRET_KEY is not that of the other processes on this Redis: links will not open"
        yield Finding(Level.FAIL, "secret key", detail)


def _clock(redis: Redis) -> Finding:
    before = time.time()
    seconds, microseconds = redis.time()
    middle = (before + time.time()) / 2
    return rules.clock(middle - (seconds + microseconds / 1e6))


def _workers(redis: Redis, users: Sequence[str]) -> Iterator[Finding]:
    if redis.exists(WORKERS_SUSPENDED):
        yield Finding(Level.FAIL, "workers", "all are suspended; `rq resume` lets them go on")
    earliest = datetime.now(UTC) - SILENCE
    for name in (PERSIST_QUEUE, NOTIFY_QUEUE, *users):
        registered = BaseWorker.all(queue=queues.queue(name, redis))
        alive = [each for each in registered if each.last_heartbeat and each.last_heartbeat > earliest]
        level = Level.OK if alive else Level.FAIL
        command = f"outkeep work {name}" if name in _OURS else f"rq worker -S json {name}"
        detail = f"{len(alive)} running" if alive else f"none runs; start `{command}`"
        yield Finding(level, f"workers of {name}", detail)


def scheduler(redis: Redis, users: Sequence[str] = ()) -> Finding:
    """Whether delayed retries are started."""
    idle = [name for name in _all(users) if not redis.exists(RQScheduler.get_locking_key(name))]
    if idle:
        detail = f"none for {', '.join(idle)}: delayed retries do not start; the workers of "
        detail += f"{PERSIST_QUEUE} and {NOTIFY_QUEUE} bring one"
        return Finding(Level.FAIL, "scheduler", detail)
    return Finding(Level.OK, "scheduler", "running")


def _sweep(redis: Redis) -> Finding:
    at = cast(bytes | None, redis.get(SWEPT))
    return rules.sweep(None if at is None else time.time() - float(at))


def ages(redis: Redis, users: Sequence[str] = ()) -> Iterator[Finding]:
    """How long work has waited, queue by queue."""
    for name in _all(users):
        queue = queues.queue(name, redis)
        yield rules.waiting(name, queue.count, _waited(redis, queue.key))


def _dead_letters(redis: Redis, users: Sequence[str]) -> Iterator[Finding]:
    for name in _all(users):
        registry = queues.queue(name, redis).failed_job_registry
        yield rules.dead_letters(name, registry.get_job_count(cleanup=False))


def _waited(redis: Redis, queue_key: str) -> float:
    """For how many seconds the first job of a queue has stood there."""
    first = cast(bytes | None, redis.lindex(queue_key, 0))
    with suppress(ValueError):  # whoever can write to Redis can write anything
        since = redis.hget(Job.key_for(first.decode()), "enqueued_at") if first else None
        if since is not None:
            return (datetime.now(UTC) - datetime.fromisoformat(cast(bytes, since).decode())).total_seconds()
    return 0.0


def _switched_off(redis: Redis, handlers: Sequence[str]) -> Iterator[Finding]:
    states = HandlerStates(redis)
    for name in handlers:
        if states.is_off(name):
            detail = f"it answered 410 and is told nothing more; `outkeep handlers enable {name}` ends that"
            yield Finding(Level.WARN, f"handler {name}", detail)


def durability(redis: Redis, *, severe: Level) -> list[Finding]:
    """What Redis' configuration could lose; `severe` is the level of the worst."""
    try:
        current = {name: _text(redis.config_get(name), name) for name in rules.DURABLE}
    except RedisError:
        return [Finding(Level.WARN, "redis", "CONFIG GET is not allowed, so durability is unknown")]
    return rules.durability(current, severe=severe)


def _text(answer: object, name: str) -> str:
    values = cast(dict[object, object], answer)
    value = values.get(name, values.get(name.encode(), b""))
    return value.decode() if isinstance(value, bytes) else str(value)
