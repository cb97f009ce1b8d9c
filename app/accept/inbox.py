"""Accept deliveries durably, many at a time: while one batch is on its way to Redis, the next one gathers."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from app.accept.group_commit import Command, Wire, pack
from app.accept.record_scripts import ACCEPT
from app.accept.records import Accepted, Arrival, Records, unconfirmed
from app.core.errors import Transient
from app.valkey.client import TIMEOUT

DEADLINE = 1.25
"""Seconds that one batch may take in all: a time-out starts anew with each byte that drips in."""

PROBE_INTERVAL = 1.0
MAX_BATCH = 256
MAX_BATCH_BYTES = 8 << 20

_ACCEPTED = {outcome.encode(): outcome for outcome in Accepted}

log = logging.getLogger("outkeep.inbox")


@dataclass
class _Waiting:
    arrival: Arrival
    answer: asyncio.Future[Accepted]


class Inbox:
    """Group commit with a breaker, on one connection of the event loop.

    Nothing waits when idle: a delivery that finds no batch on its way leaves at once. One failed batch
    opens the breaker: all who wait are refused at once, and so is everyone until a PING succeeds.
    """

    def __init__(self, connection: Redis, records: Records, clock: Callable[[], datetime]) -> None:
        """Of `connection`, which may be used elsewhere, it takes the address."""
        self._redis = connection
        self._records = records
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._sender: asyncio.Task[None] | None = None
        self._prober: asyncio.Task[None] | None = None
        self._wire: Wire | None = None

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
        if self._wire is not None:
            self._wire.close(RedisConnectionError("closed"))

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
        try:
            now = self._clock()
            commands = [self._records.accept_command(waiting.arrival, now) for waiting in batch]
            async with asyncio.timeout(DEADLINE):
                outcomes = await self._carried_out(commands)
            for waiting, outcome in zip(batch, outcomes, strict=True):
                _answer(waiting, _ACCEPTED[outcome])
        except (RedisError, OSError) as error:  # a TimeoutError among them
            if self._wire is not None:
                self._wire.close(RedisConnectionError("it did not answer in time"))
            batch, self._waiting = [*batch, *self._waiting], []
            reason = "Redis did not confirm in time"
            if isinstance(error, RedisError):
                reason = unconfirmed(error).message
            facts = {"count": len(batch), "reason": reason}
            log.warning("deliveries are not sent to Redis until it answers", extra=facts)
            self._prober = asyncio.create_task(self._probe())
        finally:
            _refuse(batch)

    async def _carried_out(self, commands: Sequence[Command]) -> list[bytes]:
        """The answers to calls of the script; those are made again that met a Redis that has forgotten it."""
        outcomes: dict[int, bytes] = {}
        while left := [number for number in range(len(commands)) if number not in outcomes]:
            wire = await self._connected()
            loading = wire.load(ACCEPT)
            packet = loading + pack([commands[number] for number in left])
            [answers] = wire.send(packet, bool(loading) + len(left))
            for number, answer in zip(left, (await answers)[bool(loading) :], strict=True):
                if isinstance(answer, NoScriptError):
                    wire.forget(ACCEPT)
                elif isinstance(answer, Exception):
                    raise answer
                else:
                    outcomes[number] = answer
        return [outcomes[number] for number in range(len(commands))]

    async def _connected(self) -> Wire:
        if self._wire is None or self._wire.lost:
            self._wire = await Wire.connect(self._redis, TIMEOUT)
        return self._wire

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(PROBE_INTERVAL)
            try:
                async with asyncio.timeout(DEADLINE):
                    wire = await self._connected()
                    [answers] = wire.send(pack([("PING",)]), 1)
                    [answer] = await answers
            except (RedisError, OSError):
                if self._wire is not None:
                    self._wire.close(RedisConnectionError("it did not answer in time"))
                continue
            if isinstance(answer, Exception):
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
