"""What each process writes about itself in Redis while it lives, and what the others have written."""

import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from typing import cast

from redis import Redis
from redis.exceptions import RedisError

from app.core import fleet
from app.core.errors import ConfigurationError, OutkeepError
from app.core.fleet import Process
from app.core.links import fingerprint
from app.core.names import PROCESSES, process_key
from app.deployment import Deployment
from app.storage.identity import Identity
from app.storage.store import Storage
from app.valkey.client import connect

START_PATIENCE = 5.0
"""Seconds that the start of a process waits for the comparison with the others."""

EVERY = 10.0
"""Seconds between two times that a process writes what it is."""

ALIVE = 45
"""Seconds of silence after which it is taken for dead."""

REMEMBERED = 900
"""Seconds for which it is known that it lived: what it has stored may have to be told yet."""

log = logging.getLogger("outkeep.process")


class Presence:
    """The entry of one process, over one Redis connection with a short time-out.

    `identity` finds out which storage that is, as soon as it can be asked. Should Redis belong to another
    one, `refused` says so, and `on_refused` is called.
    """

    def __init__(
        self,
        redis: Redis,
        process: Process,
        identity: Identity | None = None,
        on_refused: Callable[[], None] = lambda: None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._clock = clock
        self._redis = redis
        self._identity = identity
        self._on_refused = on_refused
        self.process = process
        self.refused: str | None = None

    def say(self, *, ends: bool = False) -> None:
        """Say what this process is; raises redis-py's errors. One that `ends` was here, and is not."""
        with self._redis.pipeline() as pipeline:
            seconds = REMEMBERED - ALIVE if ends else REMEMBERED
            pipeline.set(process_key(self.process.name), self.process.to_json(), ex=seconds)
            pipeline.sadd(PROCESSES, self.process.name)
            pipeline.execute()

    def say_hopefully(self, *, ends: bool = False) -> None:
        """The same where Redis may be away, which others complain about."""
        with suppress(RedisError):
            self.say(ends=ends)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Say it in a thread, again and again, until the end of the block."""
        ended = threading.Event()

        def repeat() -> None:
            while not ended.is_set():
                with suppress(RedisError, OutkeepError):  # readiness and doctor say so
                    self.say()
                    self._learn()
                ended.wait(EVERY)
            self.say_hopefully(ends=True)

        thread = threading.Thread(target=repeat, name="presence", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=2)  # a Redis that drips its answers runs into no time-out

    def _learn(self) -> None:
        """Find out which storage this is."""
        if self._identity is None or self.process.storage is not None:
            return
        try:
            found = settle(self._identity, list(self.process.handlers), self._clock())
        except ConfigurationError as error:
            self.learn(None, error.problems)
        else:
            self.learn(found, [])

    def learn(self, found: str | None, problems: Sequence[str]) -> None:
        """Take in the id of the storage, if it can be told, or why this process cannot go on."""
        if problems:
            if self.refused is None:
                log.critical("this process cannot go on: %s", problems[0])
                self.refused = problems[0]
                self._on_refused()
        elif found:
            self.refused = None
            self.process = replace(self.process, storage=found)
            self.say()


def compare(deployment: Deployment) -> list[str]:
    """The id of the storage, empty while it cannot be asked, and behind it what keeps us from starting.

    A storage or Redis that hangs keeps nobody from starting: the comparison is made later then.
    """
    found: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
    asking = threading.Thread(target=lambda: found.put(_compared(deployment)), name="compare", daemon=True)
    asking.start()
    try:
        return found.get(timeout=START_PATIENCE)
    except queue.Empty:
        return [""]


def _compared(deployment: Deployment) -> list[str]:
    settings = deployment.settings
    with closing(connect(deployment.redis_url)) as redis:
        try:
            deployment.clock.ask(redis)  # nobody follows it yet, and others read what is written here
            names = [handler.name for handler in deployment.handlers]
            return [settle(Identity(redis, Storage(settings.storage_url)), names, deployment.clock())]
        except ConfigurationError as error:
            return ["", *error.problems]
        except (RedisError, OutkeepError):
            return [""]


def settle(identity: Identity, handlers: Sequence[str], now: datetime) -> str:
    """As `Identity.settle`, with what the other processes know."""
    known = {name for one in others(identity.redis, alive=False) for name in one.handlers}
    return identity.settle(handlers, sorted(known), now)


def process_of(deployment: Deployment, role: str, storage: str | None = None) -> Process:
    """What we say of ourselves; `storage` is the id of the storage where it is known."""
    return Process(
        role=role,
        host=socket.gethostname(),
        pid=os.getpid(),
        version=metadata.version("outkeep"),
        keys=tuple(map(fingerprint, deployment.secret_keys)),
        handlers=fleet.fingerprints(deployment.handlers),
        storage=storage,
    )


def others(redis: Redis, own: Process | None = None, *, alive: bool = True) -> list[Process]:
    """The other processes, in order: those that live, or all that are remembered. Raises redis' errors."""
    names = sorted(name.decode(errors="replace") for name in cast(set[bytes], redis.smembers(PROCESSES)))
    with redis.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.get(process_key(name))
            pipeline.ttl(process_key(name))
        answers = pipeline.execute()
    found = []
    for name, said, left in zip(names, answers[0::2], answers[1::2], strict=True):
        process = fleet.read(said) if said is not None else None
        is_other = own is None or name != own.name
        if process is not None and is_other and (not alive or left > REMEMBERED - ALIVE):
            found.append(process)
    return found


def tidy(redis: Redis) -> None:
    """Forget the names of processes that were not heard of for long; raises redis-py's errors."""
    for name in cast(set[bytes], redis.smembers(PROCESSES)):
        if not redis.exists(process_key(name.decode(errors="replace"))):
            redis.srem(PROCESSES, name)
