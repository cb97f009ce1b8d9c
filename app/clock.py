"""One clock for all processes: the time of Redis, as each of them knows it.

Hosts whose clocks differ would judge each other's deadlines, scores and heartbeats wrongly. So each process
asks Redis for its `TIME` every few seconds and counts on from the answer by its monotonic clock, which
nobody sets: the clock of the host may be wrong, and may step.
"""

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, tzinfo
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from app.core import findings as rules
from app.core.findings import Level
from app.core.names import CLOCKS

if TYPE_CHECKING:
    from redis import Redis

EVERY = 2.0
"""Seconds between two questions."""

PATIENCE = 1.0
"""Seconds that a start waits for the first answer, and that a later answer may take to be believed."""

STEP = 1.0
"""Seconds by which the time of Redis may be corrected; by more it has stepped."""

GAP = 8.0
"""Seconds between two answers after which this process, or Redis, has stood still for a while."""

SHOWN_FOR = 30.0
"""Seconds for which a process is listed among those whose clocks are off after it has last said so."""

log = logging.getLogger("outkeep.clock")


class Clock:
    """Called, it gives the time of Redis; until Redis has told it, the time of this host."""

    def __init__(self) -> None:
        self._base: float | None = None  # Redis' time when the monotonic clock stood at zero
        self._told_at = math.inf  # of the monotonic clock
        self._unsteady_at = -math.inf  # the same
        self._level = Level.OK

    def __call__(self) -> datetime:
        """The time, in UTC."""
        return datetime.fromtimestamp(self.time(), UTC)

    def time(self) -> float:
        """The same in Unix seconds."""
        base = self._base
        return time.time() if base is None else base + time.monotonic()

    @property
    def skew(self) -> float:
        """How many seconds the clock of this host is ahead of that of Redis; 0 until Redis has told."""
        return time.time() - self.time()

    @property
    def is_far_off(self) -> bool:
        """Whether this host is so wrong that a process takes no jobs, and removes nothing for its age."""
        return abs(self.skew) >= rules.SKEW_FAIL

    def is_steady(self, seconds: float) -> bool:
        """Whether Redis has told the time for so many seconds without a step and without a gap.

        Else whoever lives may not have had the time to say so. A process that has just begun is steady.
        """
        now = time.monotonic()
        return now - self._unsteady_at >= seconds and now - self._told_at <= GAP

    def ask(self, redis: "Redis") -> None:
        """Ask Redis for its time; raises redis' errors."""
        before = time.monotonic()
        seconds, microseconds = redis.time()
        after = time.monotonic()
        if self._base is None or after - before <= PATIENCE:
            base = seconds + microseconds / 1e6 - (before + after) / 2
            stepped = self._base is not None and abs(base - self._base) > STEP
            if stepped or after - self._told_at > GAP:
                self._unsteady_at = after
            self._base, self._told_at = base, after

    def ask_aloud(self, redis: "Redis") -> None:
        """The same; a clock of this host that is off is logged, and listed in Redis."""
        self.ask(redis)
        skew = self.skew
        found = rules.clock(skew)
        if found.level is not self._level:
            log.warning("the clock of this host: %s", found.detail, extra={"skew": round(skew, 1)})
        self._level = found.level
        if found.level is not Level.OK:
            redis.hset(CLOCKS, f"{socket.gethostname()}:{os.getpid()}", f"{skew:.1f} {self.time():.0f}")

    @contextmanager
    def following(self, redis: "Redis") -> Iterator[None]:
        """Ask every few seconds, in a thread, during the block. `redis` should give up quickly."""
        from redis import RedisError  # heavy, and `up` asks for no time

        ended, asked = threading.Event(), threading.Event()

        def work() -> None:
            while not ended.is_set():
                with suppress(RedisError):  # others say that it is away; the monotonic clock counts on
                    self.ask_aloud(redis)
                asked.set()
                ended.wait(EVERY)

        threading.Thread(target=work, name="clock", daemon=True).start()
        asked.wait(PATIENCE)
        try:
            yield
        finally:
            ended.set()


def clocks_off(redis: "Redis") -> Mapping[str, float]:
    """The hosts with a process whose clock is off: how many seconds it is ahead. Raises redis' errors."""
    found: dict[str, float] = {}
    listed = cast(dict[bytes, bytes], redis.hgetall(CLOCKS))
    if not listed:
        return found
    now = float(redis.time()[0])
    for process, said in listed.items():
        try:
            skew, at = map(float, said.split())
        except ValueError:  # planted
            skew, at = 0.0, 0.0
        host = process.decode(errors="replace").rpartition(":")[0]
        if now - at > SHOWN_FOR:
            redis.hdel(CLOCKS, process)
        elif abs(skew) > abs(found.get(host, 0.0)):
            found[host] = skew
    return found


def clock_of(redis: "Redis") -> Clock:
    """The clock of a command: asked once, and lent to RQ. Raises redis' errors."""
    clock = Clock()
    clock.ask(redis)
    lend_to_rq(clock)
    return clock


def lend_to_rq(clock: Clock) -> None:
    """Let RQ score executions, registries and heartbeats of this process by `clock`.

    All of RQ's times come from `rq.utils.now`, which its modules import by name and which takes no clock; it
    looks up `datetime` in its module, and that is the one place where all of them can be told.
    """
    import rq.utils  # heavy, and only who works on jobs needs it

    class _Datetime:
        strptime = datetime.strptime

        @staticmethod
        def now(tz: tzinfo | None = None) -> datetime:
            return clock().astimezone(tz)

    module: Any = rq.utils
    module.datetime = SimpleNamespace(datetime=_Datetime, timezone=SimpleNamespace(utc=UTC))
