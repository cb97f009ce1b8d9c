"""The thread that asks Replicate: passes over its lists, and polling of what was created here.

One process at a time polls what is due. While nothing is on the watchlist, it only looks at one key.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from app.accept.spool import Spool
from app.core.errors import OutkeepError, Transient
from app.core.names import ASKING_TURN, PERSIST_QUEUE, RECONCILE_TURN
from app.core.reconciling import TAKEN
from app.deployment import Deployment
from app.maintain.lease import leased
from app.reconcile import memory as reconcile_memory
from app.reconcile.memory import Memory
from app.reconcile.passes import Pace, Reconciler, Report, reconciler_of
from app.replicate.watchlist import Watchlist
from app.telemetry.tally import Tally
from app.valkey.client import connect

LOOK = 2.0
"""Seconds between two looks, at what is awaited and at whose turn it is: nothing that is due waits longer."""

AGAIN = 5.0
"""Seconds after which it is tried again when the API, Redis or the storage fails."""

OTHERS = 0.5
"""Seconds to wait while another process asks."""

INTERVAL = 0.1
"""Seconds between two calls: 600 a minute, beside the 1,200 of a pass, of the 3,000 that Replicate allows."""


class Trouble:
    """Logs once why the work called `work` fails, and once that it goes on. It is retried after `seconds`."""

    def __init__(self, work: str, seconds: float) -> None:
        self._work = work
        self._seconds = seconds
        self._code = ""

    def begins(self, error: Exception) -> None:
        """Log why the work fails, unless the last failure had the same code."""
        code = error.code if isinstance(error, OutkeepError) else type(error).__name__
        if code != self._code:
            expected = isinstance(error, OutkeepError | RedisError)
            level = logging.WARNING if isinstance(error, Transient | RedisError) else logging.ERROR
            facts = {"code": code, "seconds": self._seconds}
            trace = None if expected else error
            log.log(level, "%s is put off: %s", self._work, error, extra=facts, exc_info=trace)
        self._code = code

    def ends(self) -> None:
        """Log that the work goes on, if it had failed."""
        if self._code:
            log.info("%s goes on", self._work)
        self._code = ""


class Asking:
    """Asks until it is cancelled."""

    def __init__(self, deployment: Deployment, redis: Redis, *, again: float = AGAIN) -> None:
        self._deployment = deployment
        self._redis = redis
        self._watchlist = Watchlist(redis)
        self._pace = Pace(interval=INTERVAL)
        self._again = again
        self._trouble = Trouble("asking for what was created here", again)

    async def work(self) -> None:
        """Ask whenever something is due."""
        while True:
            wait = LOOK
            try:
                if await asyncio.to_thread(self._watchlist.next_here) is not None:
                    await self._while_awaited()
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end it for good
                self._trouble.begins(error)
                wait = self._again
            await asyncio.sleep(wait)

    async def _while_awaited(self) -> None:
        """With one connection, ask until nothing is awaited any more."""
        tally = Tally()
        async with reconciler_of(
            self._deployment, self._redis, self._deployment.clock, tally=tally, pace=self._pace
        ) as reconciler:
            while (at := await asyncio.to_thread(self._watchlist.next_here)) is not None:
                wait = at - self._deployment.clock.time()
                if wait > 0:
                    await asyncio.sleep(min(wait, LOOK))
                    continue
                try:
                    await self._round(reconciler)
                finally:
                    await asyncio.to_thread(tally.flush, self._redis)

    async def _round(self, reconciler: Reconciler) -> None:
        with leased(self._redis, ASKING_TURN) as ours:
            if ours:
                await reconciler.ask(Report())
                self._trouble.ends()
        if not ours:
            await asyncio.sleep(OTHERS)


EVERY = 60.0
"""Seconds from the end of one complete pass to the begin of the next, whoever makes it."""

PATIENCE = 60.0
"""Seconds that a pass waits, once Redis answers, for what is in the spool of this host."""

TIMEOUT = 5.0
"""Seconds after which a silent Redis is an error."""

Work = Callable[[], Coroutine[Any, Any, None]]
"""Goes on until it is cancelled."""

log = logging.getLogger("outkeep.reconcile")


@contextmanager
def reconciling(
    queue: str,
    deployment: Deployment,
    *,
    every: float = EVERY,
    again: float = AGAIN,
    patience: float = PATIENCE,
) -> Iterator[None]:
    """What the worker process of a queue does for it while the block lasts."""
    if queue != PERSIST_QUEUE:
        yield
        return
    with closing(connect(deployment.redis_url, timeout=TIMEOUT)) as redis:
        with suppress(RedisError):  # the next start counts for the first, then
            Memory(redis).note_start(deployment.clock())
        works: list[Work] = []
        if deployment.settings.api_token is not None:
            works.append(
                Asking(deployment, redis, again=again).work
            )  # whatever else is off: nothing else would tell
            if deployment.settings.reconciles != "off":
                works.append(Passes(deployment, redis, every=every, patience=patience).work)
        with _thread(works):
            yield


@contextmanager
def _thread(works: Sequence[Work]) -> Iterator[None]:
    """A thread with an event loop that runs all of them until the end of the block."""

    async def together() -> None:
        async with asyncio.TaskGroup() as group:  # which ends when all of them have ended
            for work in works:
                group.create_task(work())

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    loop = asyncio.new_event_loop()
    task = loop.create_task(together())
    thread = threading.Thread(target=run, name="reconcile", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(task.cancel)
        thread.join(timeout=2)  # it may be killed anywhere, so nobody waits for it


class Passes:
    """Makes a pass whenever one is due, until it is cancelled."""

    def __init__(self, deployment: Deployment, redis: Redis, *, every: float, patience: float) -> None:
        settings = deployment.settings
        self._deployment = deployment
        self._redis = redis
        self._every = every
        self._spool = Spool(settings.data / "spool", disk_floor=settings.disk_floor)
        self._patience = patience
        self._waiting_since: float | None = None
        self._trouble = Trouble("reconciliation", every)

    async def work(self) -> None:
        """Make them."""
        while True:
            wait = LOOK
            try:
                await self._turn()
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end it for good
                self._trouble.begins(error)
                self._waiting_since = None
                wait = self._every
            await asyncio.sleep(wait)

    async def _turn(self) -> None:
        """Make a pass if one is due, and nobody else does."""
        age = await asyncio.to_thread(reconcile_memory.age, self._redis, self._deployment.clock.time())
        if age is not None and 0 <= age < self._every:
            return
        if await asyncio.to_thread(self._is_about_to_come_in):
            return
        with leased(self._redis, RECONCILE_TURN) as ours:
            if ours:
                await self._pass()

    def _is_about_to_come_in(self) -> bool:
        """Whether deliveries in the spool should be first: the API does not tell their query and context."""
        try:
            waiting = self._spool.waiting()
        except OSError:  # readiness says why
            waiting = []
        if not waiting:
            self._waiting_since = None
            return False
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        return now - self._waiting_since < self._patience

    async def _pass(self) -> None:
        report, tally = Report(), Tally()
        try:
            deployment = self._deployment
            async with reconciler_of(deployment, self._redis, deployment.clock, tally=tally) as reconciler:
                await reconciler.run(report)
            self._trouble.ends()
        finally:
            await asyncio.to_thread(tally.flush, self._redis)
            if report.taken:
                found = {found: sum(counts[found] for counts in report.counts.values()) for found in TAKEN}
                log.info("reconciled", extra={str(one): count for one, count in found.items()})
