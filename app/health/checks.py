"""The checks, each once: `/readyz`, `outkeep doctor`, `outkeep healthcheck` and the dashboard pick from them.

Functions that look at Redis raise redis-py's errors.
"""

import asyncio
import http.client
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Generic, TypeVar, cast

from redis import Redis
from redis.exceptions import ResponseError
from rq import worker_registration
from rq.job import Job
from rq.scheduler import RQScheduler
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import utcparse

from app.accept import queues
from app.accept.spool import Spool
from app.clock import clock_of, clocks_off
from app.core import findings as rules
from app.core.errors import Permanent
from app.core.findings import OURS, SILENCE, UNTOLD_AFTER, Finding, Level
from app.core.fleet import Process, compared
from app.core.lifecycle import Repair
from app.core.names import KEY_FINGERPRINT, NOTIFY_QUEUE, PERSIST_QUEUE, REPAIRED, SWEPT, WRITE_PROBE
from app.disk import floor_of
from app.health.presence import others
from app.maintain.handler_states import HandlerStates
from app.maintain.user_jobs import untold
from app.receive.listening import reached_at
from app.reconcile import memory as reconcile_memory
from app.settings import Settings
from app.storage.identity import Identity, lost
from app.valkey.client import connect, find_redis
from app.valkey.processes import is_stopped

T = TypeVar("T")


class Recent(Generic[T]):
    """Work in a thread, of which all callers share the result: a hung check delays only its own callers.

    For one event loop.
    """

    def __init__(self, work: Callable[[], T], *, kept: float) -> None:
        """A result is given out again for `kept` seconds."""
        self._work = work
        self._kept = kept
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recent")
        self._run: asyncio.Future[T] | None = None
        self._ended = 0.0

    async def get(self) -> T:
        """The result, or what the work raised."""
        run = self._run
        if run is None or (run.done() and time.monotonic() - self._ended >= self._kept):
            run = self._run = asyncio.get_running_loop().run_in_executor(self._thread, self._timed)
        # Who does not wait any more must not end it for the others.
        return await asyncio.shield(run)

    def _timed(self) -> T:
        try:
            return self._work()
        finally:
            self._ended = time.monotonic()


@dataclass(frozen=True)
class Subject:
    """What is examined: `own` is what a process of this configuration says of itself.

    `identity` has looked at the storage; None where that is not possible. `users` are the queues that hold
    jobs of the user's, `reconciles` is the setting; None without a token.
    """

    own: Process
    identity: Identity | None
    users: Sequence[str]
    reconciles: str | None


def shared(redis: Redis, subject: Subject, now: datetime) -> Iterator[Finding]:
    """What readiness tells, too: it takes a few round trips, however much waits."""
    yield from server(redis)
    yield from durability(redis)
    yield from memory(redis)
    yield from default_user(redis)
    known = cast(bytes | None, redis.get(KEY_FINGERPRINT))
    last_key = known.decode(errors="replace") if known else None
    yield from compared(subject.own, others(redis, subject.own), last_key=last_key)
    if subject.identity is not None:
        yield from lost(subject.identity)
    yield from rules.clocks(clocks_off(redis))
    yield from workers(redis, subject.users, now)
    yield scheduler(redis, subject.users)
    yield from ages(redis, subject.users, now)
    yield from switched_off(redis)
    if subject.reconciles is not None:
        yield rules.reconciled(subject.reconciles, reconcile_memory.age(redis, now.timestamp()))


def of_redis(redis: Redis, subject: Subject) -> list[Finding]:
    """Every check that needs Redis."""
    findings: list[Finding] = []
    try:
        redis.set(WRITE_PROBE, 1, px=1000)
    except ResponseError as error:
        detail = f"takes no writes ({type(error).__name__}): nothing is stored until it does"
        findings.append(Finding(Level.FAIL, "redis", detail))
    try:
        now = clock_of(redis)()
        findings += shared(redis, subject, now)
        findings += [_clock(redis), *swept(redis, now)]
        for name in _all(subject.users):
            registry = queues.queue(name, redis).failed_job_registry
            findings.append(rules.dead_letters(name, registry.get_job_count(cleanup=False)))
        if subject.users:
            ended = untold(redis, subject.users)
            findings.append(rules.untold([job for job, end in ended if end.age(now) >= UNTOLD_AFTER]))
    except ResponseError as error:  # a cluster, or a user who may not do what we must
        detail = f"refuses commands that are needed ({type(error).__name__}): {error}"
        findings.append(Finding(Level.FAIL, "redis", detail))
    failing = {one.check for one in findings if one.level is Level.FAIL}
    return [one for one in findings if one.level is not Level.OK or one.check not in failing]


def server(redis: Redis) -> list[Finding]:
    """What Redis says against itself: its version, its role, its replicas, its disk."""
    try:
        info = cast(dict[str, object], redis.info())
    except ResponseError:
        return [Finding(Level.WARN, "redis", "INFO is not allowed, so its version and role are unknown")]
    return rules.server(info)


def durability(redis: Redis) -> list[Finding]:
    """What Redis' configuration could lose."""
    try:
        found = {name: cast(dict[object, object], redis.config_get(name)) for name in rules.DURABLE}
    except ResponseError:
        return [Finding(Level.WARN, "redis", "CONFIG GET is not allowed, so durability is unknown")]
    return rules.durability(
        {name: rules.text(said.get(name, said.get(name.encode(), b""))) for name, said in found.items()}
    )


def memory(redis: Redis) -> list[Finding]:
    """Whether Redis' memory runs short; nothing where it may not be asked."""
    try:
        return rules.memory(cast(dict[str, object], redis.info("memory")))
    except ResponseError:
        return []


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


def workers(redis: Redis, users: Sequence[str], now: datetime) -> Iterator[Finding]:
    """Whether every queue that is needed is served."""
    if redis.exists(WORKERS_SUSPENDED):
        yield Finding(Level.FAIL, "workers", "all are suspended; `rq resume` lets them go on")
    for name in (PERSIST_QUEUE, NOTIFY_QUEUE, *users):
        yield rules.workers(name, [one.silence for one in registered(redis, name, now)])


@dataclass(frozen=True)
class Registered:
    """A worker as RQ lists it; `silence` are the seconds since it was heard of."""

    host: str
    pid: int
    silence: float


def registered(redis: Redis, name: str, now: datetime) -> list[Registered]:
    """The workers that are registered for a queue.

    RQ's own list consists of workers, and each of them raises the time-out of the client that it is given.
    """
    keys = worker_registration.get_keys(queue=queues.queue(name, redis))
    with redis.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.hmget(key, "hostname", "pid", "last_heartbeat")
        rows = pipeline.execute()
    found = []
    for host, pid, heard_at in rows:
        with suppress(ValueError, AttributeError):  # it has gone meanwhile, or was planted
            silence = (now - utcparse(heard_at.decode())).total_seconds()
            found.append(Registered((host or b"").decode(), int(pid or 0), silence))
    return found


def scheduler(redis: Redis, users: Sequence[str]) -> Finding:
    """Whether delayed retries are started."""
    idle = [name for name in _all(users) if not redis.exists(RQScheduler.get_locking_key(name))]
    if idle:
        detail = f"none for {', '.join(idle)}: delayed retries do not start; the workers of "
        detail += f"{PERSIST_QUEUE} and {NOTIFY_QUEUE} bring one"
        return Finding(Level.FAIL, "scheduler", detail)
    return Finding(Level.OK, "scheduler", "running")


def ages(redis: Redis, users: Sequence[str], now: datetime) -> Iterator[Finding]:
    """How long work has waited, queue by queue."""
    for name in _all(users):
        queue = queues.queue(name, redis)
        yield rules.waiting(name, queue.count, _waited(redis, queue.key, now))
        if name == PERSIST_QUEUE and (put_off := queue.scheduled_job_registry.get_job_count(cleanup=False)):
            yield rules.put_off(put_off)


def _all(users: Sequence[str]) -> tuple[str, ...]:
    """Our queues, and those that users work off themselves."""
    return (*OURS, *(name for name in users if name not in OURS))


def _waited(redis: Redis, queue_key: str, now: datetime) -> float:
    """For how many seconds the first job of a queue has stood there."""
    first = cast(bytes | None, redis.lindex(queue_key, 0))
    with suppress(ValueError):  # whoever can write to Redis can write anything
        since = redis.hget(Job.key_for(first.decode()), "enqueued_at") if first else None
        if since is not None:
            return (now - datetime.fromisoformat(cast(bytes, since).decode())).total_seconds()
    return 0.0


def switched_off(redis: Redis) -> Iterator[Finding]:
    """The handlers that are told nothing any more."""
    for name, since in sorted(HandlerStates(redis).switched_off().items()):
        detail = f"it answered 410 at {since} and is told nothing; `outkeep handlers enable {name}` ends that"
        yield Finding(Level.WARN, f"handler {name}", detail)


def _clock(redis: Redis) -> Finding:
    before = time.time()
    seconds, microseconds = redis.time()
    middle = (before + time.time()) / 2
    return rules.clock(middle - (seconds + microseconds / 1e6))


def swept(redis: Redis, now: datetime) -> list[Finding]:
    """When the last sweep ended, and what it has repaired lately."""
    at = cast(bytes | None, redis.get(SWEPT))
    made = {}
    for repair, note in cast(dict[bytes, bytes], redis.hgetall(REPAIRED)).items():
        with suppress(ValueError):  # whoever can write to Redis can write anything
            count, repaired_at = map(int, note.split())
            made[Repair(repair.decode())] = (count, now.timestamp() - repaired_at)
    return [rules.sweep(None if at is None else now.timestamp() - float(at)), *rules.repairs(made)]


def disk(folder: Path, floor: int | None) -> Finding:
    """Whether there is room on the disk of a folder, or of where it will be; `floor` in bytes."""
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return rules.disk(str(place), shutil.disk_usage(place).free, floor_of(place, floor))


def spooled(spool: Spool | None, now: datetime) -> list[Finding]:
    """Whether it could take a delivery, and what waits there."""
    if spool is None:
        return []
    trouble = spool.trouble()
    if trouble is not None:
        return [Finding(Level.WARN, "spool", trouble)]
    try:
        waiting, damaged = spool.waiting(), spool.damaged()
    except OSError as error:
        return [Finding(Level.WARN, "spool", f"cannot read {spool.folder}: {error.strerror}")]
    findings = []
    if damaged:
        detail = f"{damaged} deliveries are damaged; look at *.damaged in {spool.folder}"
        findings.append(Finding(Level.WARN, "spool", detail))
    if waiting:
        age = (now - waiting[0].received_at).total_seconds()
        whom = "for Redis, or, if large, for the storage"
        detail = f"{len(waiting)} deliveries wait {whom}; the oldest for {age:.0f} s"
        findings.append(Finding(Level.WARN, "spool", detail))
    return findings or [Finding(Level.OK, "spool", "empty")]


TIMEOUT = 3.0
"""Seconds that a part has to answer the health check."""

_OK = 200


def check(part: str, settings: Settings) -> None:
    """Raise `Permanent` unless `receiver`, or a worker of this host on the queue `part`, lives."""
    if part == "receiver":
        _check_receiver(reached_at(settings.host), settings.port)
    else:
        _check_worker(part, find_redis(settings))


def _check_receiver(host: str, port: int) -> None:
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise Permanent("dead", f"no receiver answers on {host}:{port} ({type(error).__name__})") from None
    finally:
        connection.close()
    if status != _OK:
        raise Permanent("dead", f"the receiver on {host}:{port} answers {status}")


def _check_worker(queue: str, url: str) -> None:
    redis, here = connect(url, timeout=TIMEOUT), socket.gethostname()
    stopped = None
    for worker in registered(redis, queue, clock_of(redis)()):
        if worker.host == here and worker.silence < SILENCE:
            if not is_stopped(worker.pid):
                return
            stopped = worker.pid
    if stopped is not None:
        raise Permanent("dead", f"the worker of the queue {queue} (pid {stopped}) is stopped by a signal")
    raise Permanent("dead", f"no worker of the queue {queue} lives on this host")
