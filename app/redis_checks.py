"""What Redis tells readiness and the doctor about itself."""

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import cast

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from app.clock import clock_of, clocks_off
from app.core import findings as rules
from app.core.findings import Finding, Level
from app.core.links import fingerprint
from app.core.names import KEY_FINGERPRINT, SWEPT, WRITE_PROBE
from app.handler_states import HandlerStates
from app.job_checks import ages, dead_letters, scheduler, untold_ends, workers


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
    durable, now = durability(redis, severe=Level.FAIL), clock_of(redis)()
    return [
        *(found for found in durable if not (wrong and found.level is Level.OK)),
        *memory(redis),
        *_key(redis, keys),
        _clock(redis),
        *rules.clocks(clocks_off(redis)),
        *workers(redis, users, now),
        scheduler(redis, users),
        _sweep(redis, now),
        *ages(redis, now, users),
        *dead_letters(redis, users),
        *untold_ends(redis, users, now),
        *_switched_off(redis, handlers),
    ]


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


def _sweep(redis: Redis, now: datetime) -> Finding:
    at = cast(bytes | None, redis.get(SWEPT))
    return rules.sweep(None if at is None else now.timestamp() - float(at))


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


def memory(redis: Redis) -> list[Finding]:
    """Whether Redis' memory runs short; nothing where it may not be asked."""
    try:
        return rules.memory(cast(dict[str, object], redis.info("memory")))
    except ResponseError:
        return []


def _text(answer: object, name: str) -> str:
    values = cast(dict[object, object], answer)
    value = values.get(name, values.get(name.encode(), b""))
    return value.decode() if isinstance(value, bytes) else str(value)
