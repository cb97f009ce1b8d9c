"""The checks that readiness, the doctor and the health check of a container share.

`users` are the queues that hold jobs of the user's. All raise redis' errors.
"""

import asyncio
import http.client
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Generic, TypeVar, cast

from redis import Redis
from redis.exceptions import RedisError, ResponseError
from rq.job import Job
from rq.scheduler import RQScheduler
from rq.suspension import WORKERS_SUSPENDED
from rq.worker.base import BaseWorker

from app.accept import queues
from app.accept.inbox import connect
from app.clock import clock_of, clocks_off
from app.core import findings as rules
from app.core.errors import Permanent
from app.core.findings import OURS, UNTOLD_AFTER, Finding, Level
from app.core.fleet import Process, compared
from app.core.lifecycle import Repair
from app.core.names import KEY_FINGERPRINT, NOTIFY_QUEUE, PERSIST_QUEUE, REPAIRED, SWEPT, WRITE_PROBE
from app.deployment import find_redis
from app.health.presence import others
from app.maintain.handler_states import HandlerStates
from app.maintain.user_jobs import untold
from app.receive.listening import reached_at
from app.settings import Settings
from app.valkey.processes import is_stopped

T = TypeVar("T")


class Recent(Generic[T]):
    """Work that hangs holds up who asks for its result, and nobody else. For one event loop."""

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


def workers(redis: Redis, users: Sequence[str], now: datetime) -> Iterator[Finding]:
    """Whether every queue that is needed is served."""
    if redis.exists(WORKERS_SUSPENDED):
        yield Finding(Level.FAIL, "workers", "all are suspended; `rq resume` lets them go on")
    for name in (PERSIST_QUEUE, NOTIFY_QUEUE, *users):
        registered = BaseWorker.all(queue=queues.queue(name, redis))
        heard = [worker.last_heartbeat for worker in registered if worker.last_heartbeat]
        yield rules.workers(name, [(now - at).total_seconds() for at in heard])


def scheduler(redis: Redis, users: Sequence[str] = ()) -> Finding:
    """Whether delayed retries are started."""
    idle = [name for name in _all(users) if not redis.exists(RQScheduler.get_locking_key(name))]
    if idle:
        detail = f"none for {', '.join(idle)}: delayed retries do not start; the workers of "
        detail += f"{PERSIST_QUEUE} and {NOTIFY_QUEUE} bring one"
        return Finding(Level.FAIL, "scheduler", detail)
    return Finding(Level.OK, "scheduler", "running")


def ages(redis: Redis, now: datetime, users: Sequence[str] = ()) -> Iterator[Finding]:
    """How long work has waited, queue by queue."""
    for name in _all(users):
        queue = queues.queue(name, redis)
        yield rules.waiting(name, queue.count, _waited(redis, queue.key, now))
        if name == PERSIST_QUEUE and (put_off := queue.scheduled_job_registry.get_job_count(cleanup=False)):
            yield rules.put_off(put_off)


def dead_letters(redis: Redis, users: Sequence[str]) -> Iterator[Finding]:
    """How many jobs have failed for good, queue by queue."""
    for name in _all(users):
        registry = queues.queue(name, redis).failed_job_registry
        yield rules.dead_letters(name, registry.get_job_count(cleanup=False))


def untold_ends(redis: Redis, users: Sequence[str], now: datetime) -> Iterator[Finding]:
    """Whether it is told how the jobs of the user's ended; nothing where there are none."""
    if users:
        found = [job_id for job_id, end in untold(redis, users) if end.age(now) >= UNTOLD_AFTER]
        yield rules.untold(found)


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
        *swept(redis, now),
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


def swept(redis: Redis, now: datetime) -> list[Finding]:
    """When the last sweep ended, and what it has repaired lately."""
    at = cast(bytes | None, redis.get(SWEPT))
    made = {}
    for repair, note in cast(dict[bytes, bytes], redis.hgetall(REPAIRED)).items():
        with suppress(ValueError):  # whoever can write to Redis can write anything
            count, repaired_at = map(int, note.split())
            made[Repair(repair.decode())] = (count, now.timestamp() - repaired_at)
    return [rules.sweep(None if at is None else now.timestamp() - float(at)), *rules.repairs(made)]


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


TIMEOUT = 3.0
SILENCE = timedelta(seconds=90)
"""A worker that has not been heard of for this long is taken for dead."""

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
    redis = connect(url, timeout=TIMEOUT)
    here, earliest = socket.gethostname(), clock_of(redis)() - SILENCE
    stopped = None
    for worker in BaseWorker.all(queue=queues.queue(queue, redis)):
        heard = worker.last_heartbeat
        if worker.hostname == here and heard is not None and heard > earliest:
            if not is_stopped(worker.pid or 0):
                return
            stopped = worker.pid
    if stopped is not None:
        raise Permanent("dead", f"the worker of the queue {queue} (pid {stopped}) is stopped by a signal")
    raise Permanent("dead", f"no worker of the queue {queue} lives on this host")
