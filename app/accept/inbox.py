"""Accept deliveries durably, many at a time: while one batch is on its way to Redis, the next one gathers."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from redis import Redis
from redis.exceptions import RedisError

from app.accept.records import Accepted, Arrival, Records
from app.core.errors import Transient

DEADLINE = 1.25
"""Seconds that one batch may take in all: a time-out starts anew with each byte that drips in."""

PROBE_INTERVAL = 1.0
MAX_BATCH = 256
MAX_BATCH_BYTES = 8 << 20

THREADS = 8
"""One sends and one probes; the others are for calls that still hang after their batch was given up."""

log = logging.getLogger("outkeep.inbox")


@dataclass
class _Waiting:
    arrival: Arrival
    answer: asyncio.Future[Accepted]


class Inbox:
    """Group commit with a breaker.

    Nothing waits when idle: a delivery that finds no batch on its way leaves at once. One failed batch
    opens the breaker: all who wait are refused at once, and so is everyone until a PING succeeds.
    """

    def __init__(self, connection: Redis, records: Records, clock: Callable[[], datetime]) -> None:
        self._redis = connection
        self._records = records
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._sender: asyncio.Task[None] | None = None
        self._prober: asyncio.Task[None] | None = None
        # Not those that all others share: whatever else hangs, a storage for example, must not hold us up.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="inbox")

    async def accept(self, arrival: Arrival) -> Accepted:
        """Wait until a delivery is durable; raises `Transient` when that is not confirmed."""
        if self._prober is not None:
            raise _unavailable()
        waiting = _Waiting(arrival, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        return await waiting.answer

    async def close(self) -> None:
        """Wait for the batch on its way and stop probing."""
        if self._sender is not None:
            await self._sender
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)
        self._threads.shutdown(wait=False)

    async def _send(self) -> None:
        try:
            while self._waiting:
                await self._commit(self._next_batch())
        finally:
            self._sender = None
            # Nobody may wait for ever, even should our own code have failed.
            refused, self._waiting = self._waiting, []
            _refuse(refused)

    def _next_batch(self) -> list[_Waiting]:
        size = count = 0
        for waiting in self._waiting[:MAX_BATCH]:
            size += len(waiting.arrival.body)
            if count and size > MAX_BATCH_BYTES:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _commit(self, batch: list[_Waiting]) -> None:
        arrivals = [waiting.arrival for waiting in batch]
        try:
            loop = asyncio.get_running_loop()
            sending = loop.run_in_executor(self._threads, self._records.accept, arrivals, self._clock())
            outcomes = await asyncio.wait_for(sending, DEADLINE)
            for waiting, outcome in zip(batch, outcomes, strict=True):
                _answer(waiting, outcome)
        except (Transient, TimeoutError) as error:
            batch, self._waiting = [*batch, *self._waiting], []
            facts = {"count": len(batch), "reason": str(error) or "Redis did not confirm in time"}
            log.warning("deliveries are not sent to Redis until it answers", extra=facts)
            self._prober = asyncio.create_task(self._probe())
        finally:
            _refuse(batch)

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(PROBE_INTERVAL)
            try:
                await asyncio.get_running_loop().run_in_executor(self._threads, self._redis.ping)
            except RedisError:
                continue
            log.info("Redis answers again")
            self._prober = None
            return


def _answer(waiting: _Waiting, outcome: Accepted) -> None:
    # A sender that hung up has cancelled its future; its event may be durable all the same.
    if not waiting.answer.done():
        waiting.answer.set_result(outcome)


def _refuse(batch: Sequence[_Waiting]) -> None:
    """Answer all that have no answer yet."""
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(_unavailable())


def _unavailable() -> Transient:
    return Transient("redis_unavailable", "the event could not be made durable; send it again", retry_after=2)
