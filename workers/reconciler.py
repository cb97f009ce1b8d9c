"""When reconciliation runs: every minute, in a thread of the persist workers, in one process at a time."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from redis import Redis
from redis.exceptions import RedisError

from app import reconcile_memory
from app.core.errors import OutkeepError, Transient
from app.core.names import PERSIST_QUEUE
from app.core.reconciling import TAKEN
from app.deployment import Deployment
from app.inbox import connect
from app.reconcile import reconciler_of
from app.reconcile_memory import Memory
from app.reconcile_one import Report
from app.tally import Tally

EVERY = 60.0
"""Seconds from the end of one complete pass to the begin of the next, whoever makes it."""

LOOK = 2.0
"""Seconds between two looks at whose turn it is: after a start nobody has to wait for a minute."""

TIMEOUT = 5.0
"""Seconds after which a silent Redis is an error."""

log = logging.getLogger("outkeep.reconcile")


@contextmanager
def reconciling(queue: str, deployment: Deployment, *, every: float = EVERY) -> Iterator[None]:
    """What the worker process of a queue does for it while the block lasts."""
    if queue != PERSIST_QUEUE:
        yield
        return
    redis = connect(deployment.redis_url, timeout=TIMEOUT)
    with suppress(RedisError):  # the next start counts for the first, then
        Memory(redis).note_start(datetime.now(UTC))
    if deployment.settings.api_token is None or deployment.settings.reconciles == "off":
        redis.close()
        yield
        return
    periodic = Periodic(deployment, redis, every=every)
    thread = threading.Thread(target=periodic.run, name="reconcile", daemon=True)
    thread.start()
    try:
        yield
    finally:
        periodic.stop()
        thread.join(timeout=2)  # it may be killed anywhere, so nobody waits for it


class Periodic:
    """Makes a pass whenever one is due, until it is stopped from another thread."""

    def __init__(self, deployment: Deployment, redis: Redis, *, every: float) -> None:
        self._deployment = deployment
        self._redis = redis
        self._memory = Memory(redis)
        self._every = every
        self._failing = ""
        self._ended = threading.Event()
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Task[None]] | None = None

    def run(self) -> None:
        """Work until `stop`."""
        asyncio.run(self._until_stopped())
        with suppress(RedisError):
            self._redis.close()

    def stop(self) -> None:
        """End the pass on its way, and `run`."""
        self._ended.set()
        if self._running is not None:
            loop, task = self._running
            with suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(task.cancel)

    async def _until_stopped(self) -> None:
        work = asyncio.create_task(self._work())
        self._running = (asyncio.get_running_loop(), work)
        if self._ended.is_set():
            work.cancel()
        with suppress(asyncio.CancelledError):
            await work

    async def _work(self) -> None:
        while True:
            wait = LOOK
            try:
                await self._turn()
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end it for good
                self._put_off(error)
                wait = self._every
            await asyncio.sleep(wait)

    async def _turn(self) -> None:
        """Make a pass if one is due, and nobody else does."""
        age = await asyncio.to_thread(reconcile_memory.age, self._redis)
        if age is not None and 0 <= age < self._every:
            return
        with self._memory.turn() as ours:
            if ours:
                await self._pass()

    async def _pass(self) -> None:
        report, tally = Report(), Tally()
        try:
            async with reconciler_of(self._deployment, self._redis, _now, tally=tally) as reconciler:
                await reconciler.run(report)
            if self._failing:
                log.info("reconciliation goes on")
            self._failing = ""
        finally:
            await asyncio.to_thread(tally.flush, self._redis)
            if report.taken:
                found = {found: sum(counts[found] for counts in report.counts.values()) for found in TAKEN}
                log.info("reconciled", extra={str(one): count for one, count in found.items()})

    def _put_off(self, error: Exception) -> None:
        """Say once why nothing is found, as long as that does not change."""
        code = error.code if isinstance(error, OutkeepError) else type(error).__name__
        if code != self._failing:
            expected = isinstance(error, OutkeepError | RedisError)
            level = logging.WARNING if isinstance(error, Transient | RedisError) else logging.ERROR
            facts = {"code": code, "seconds": self._every}
            log.log(
                level,
                "reconciliation is put off: %s",
                error,
                extra=facts,
                exc_info=None if expected else error,
            )
        self._failing = code


def _now() -> datetime:
    return datetime.now(UTC)
