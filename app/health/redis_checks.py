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
from app.core.fleet import Process, compared
from app.core.names import KEY_FINGERPRINT, SWEPT, WRITE_PROBE
from app.health.job_checks import ages, dead_letters, scheduler, untold_ends, workers
from app.health.presence import others
from app.maintain.handler_states import HandlerStates

REPLAYED = (
    ("HSET", "outkeep:record:prediction:x", "state", "received"),
    ("ZADD", "outkeep:records", "0", "prediction:x"),
    ("HINCRBY", "outkeep:counters", "x", "1"),
    ("HDEL", "outkeep:record:prediction:x", "state"),
    ("ZREM", "outkeep:records", "prediction:x"),
    ("ZREMRANGEBYSCORE", "outkeep:records", "-inf", "0"),
    ("PEXPIREAT", "outkeep:record:prediction:x", "1"),
    ("PERSIST", "outkeep:record:prediction:x"),
    ("SET", "outkeep:process:x", "x"),
    ("INCR", "outkeep:epoch"),
    ("HSET", "rq:job:x", "status", "queued"),
    ("SADD", "rq:queues", "rq:queue:persist"),
    ("SREM", "rq:workers", "x"),
    ("RPUSH", "rq:queue:persist", "x"),
    ("LPUSH", "rq:queue:persist", "x"),
    ("LPOP", "rq:queue:persist"),
    ("LMOVE", "rq:queue:persist", "rq:queue:persist:intermediate", "RIGHT", "LEFT"),
    ("XADD", "rq:results:x", "*", "x", "x"),
    ("LREM", "rq:queue:persist", "1", "x"),
    ("DEL", "rq:job:x"),
)
"""Commands as they stand in the log of Redis, within transactions: it writes what scripts and `EXPIRE` do."""


def check_redis(
    redis: Redis, own: Process, handlers: Sequence[str], users: Sequence[str] = ()
) -> list[Finding]:
    """Every check that needs Redis; raises redis' errors when it does not answer.

    `own` is what a process of this configuration would say of itself, `handlers` are the names of those that
    are told, `users` the queues that hold jobs of the user's.
    """
    findings = [*server(redis), *_writes(redis)]
    try:
        findings += _rest(redis, own, handlers, users, wrong=any(one.level is Level.FAIL for one in findings))
    except ResponseError as error:
        # A cluster, or a user who may not do what we must.
        detail = f"refuses commands that are needed ({type(error).__name__}): {error}"
        findings.append(Finding(Level.FAIL, "redis", detail))
    return findings


def _rest(
    redis: Redis, own: Process, handlers: Sequence[str], users: Sequence[str], *, wrong: bool
) -> list[Finding]:
    durable, now = durability(redis, severe=Level.FAIL), clock_of(redis)()
    return [
        *(found for found in durable if not (wrong and found.level is Level.OK)),
        *memory(redis),
        *default_user(redis),
        *_fleet(redis, own),
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


def server(redis: Redis) -> list[Finding]:
    """What Redis says against itself: its version, its role, its replicas, its disk."""
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


def _fleet(redis: Redis, own: Process) -> list[Finding]:
    known = cast(bytes | None, redis.get(KEY_FINGERPRINT))
    return compared(own, others(redis, own), last_key=known.decode(errors="replace") if known else None)


def default_user(redis: Redis) -> list[Finding]:
    """Whether Redis drops transactions when it loads its log, since its default user may not run them.

    Redis and Valkey check the commands of a transaction against that user when they replay it (found in Redis
    7.0 and 7.2 and Valkey 9.1), although nobody logs in as it.
    """
    try:
        with redis.pipeline(transaction=False) as pipeline:
            for command in REPLAYED:
                pipeline.acl_dryrun("default", *command)
            answers = pipeline.execute()
    except ResponseError:
        return []  # not allowed to look; or a server before 7.0, which is named for that
    return rules.default_user(refused=any(rules.text(answer) != "OK" for answer in answers))


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
        found = {name: cast(dict[object, object], redis.config_get(name)) for name in rules.DURABLE}
    except RedisError:
        return [Finding(Level.WARN, "redis", "CONFIG GET is not allowed, so durability is unknown")]
    current = {name: rules.text(said.get(name, said.get(name.encode(), b""))) for name, said in found.items()}
    return rules.durability(current, severe=severe)


def memory(redis: Redis) -> list[Finding]:
    """Whether Redis' memory runs short; nothing where it may not be asked."""
    try:
        return rules.memory(cast(dict[str, object], redis.info("memory")))
    except ResponseError:
        return []
