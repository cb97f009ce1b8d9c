"""Calls of many coroutines to Redis: while one batch is on its way, the next one gathers."""

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import hiredis
import redis.asyncio
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

TIMEOUT = 5.0
"""Seconds after which a batch without an answer has failed."""

PATIENCE = 5.0
"""Seconds for which it is tried to reach a Redis that does not take connections."""

MAX_BATCH = 256
MAX_BATCH_BYTES = 8 << 20

Command = Sequence[str | bytes | int | float]
"""As it goes over the wire: `("HGET", key, "state")`."""

_WHERE = {
    "host",
    "port",
    "path",
    "db",
    "username",
    "password",
    "credential_provider",
    "protocol",
    "client_name",
}
"""Options of a client that say which Redis it means, and as whom."""

_INCOMPLETE = object()


class Wire(asyncio.Protocol):
    """One connection to Redis on the event loop: packets of commands out, their answers in order.

    redis-py connects (addresses, TLS, passwords); its own reading costs several times as much CPU.
    """

    def __init__(self, parse_error: Callable[[str], Exception]) -> None:
        self._scripts: set[str] = set()
        self.lost: RedisError | None = None
        self._reader = hiredis.Reader(
            protocolError=RedisConnectionError, replyError=parse_error, notEnoughData=_INCOMPLETE
        )
        self._awaited: deque[tuple[int, asyncio.Future[list[Any]]]] = deque()
        self._answers: list[Any] = []
        self._transport: asyncio.Transport
        self._connection: Any  # its streams abort the transport when they are forgotten

    @classmethod
    async def connect(cls, beside: Redis, within: float = TIMEOUT) -> "Wire":
        """A new connection to where `beside` leads; no step takes `within` seconds. Raises redis' errors."""
        pool = beside.connection_pool
        options = {
            name: value
            for name, value in pool.connection_kwargs.items()
            if name in _WHERE or name.startswith("ssl_")
        }
        kind = getattr(redis.asyncio.connection, pool.connection_class.__name__)
        connection: Any = kind(**options, socket_connect_timeout=within, socket_timeout=within)
        await connection.connect()
        wire = cls(connection._parser.parse_error)  # noqa: SLF001  # a test of ours tells when it moves
        transport = connection._writer.transport  # noqa: SLF001
        transport.set_protocol(wire)
        wire._transport, wire._connection = transport, connection
        return wire

    def send(self, packet: bytes, *counts: int) -> list["asyncio.Future[list[Any]]"]:
        """Send packed commands; a future for each of `counts`, with as many answers, errors among them.

        The futures raise redis' ConnectionError when the connection ends first.
        """
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[list[Any]]] = [loop.create_future() for _ in counts]
        if self.lost:
            for future in futures:
                future.set_exception(self.lost)
        else:
            self._awaited.extend(zip(counts, futures, strict=True))
            self._transport.write(packet)
        return futures

    def load(self, script: str) -> bytes:
        """What loads a script, to be sent before its first call here; empty (and unanswered) later."""
        if script in self._scripts:
            return b""
        self._scripts.add(script)
        return pack([("SCRIPT", "LOAD", script)])

    def forget(self, script: str) -> None:
        """Load a script anew: somebody has flushed them."""
        self._scripts.discard(script)

    def close(self, why: RedisError) -> None:
        """End the connection; whoever awaits an answer gets `why`."""
        self.lost = self.lost or why
        self._transport.abort()
        self._connection._reader = self._connection._writer = None  # noqa: SLF001  # it is closed
        for _, future in self._awaited:
            if not future.done():
                future.set_exception(why)
        self._awaited.clear()

    def data_received(self, data: bytes) -> None:
        """Take in what Redis has sent."""
        self._reader.feed(data)
        answers = self._answers
        try:
            while (answer := self._reader.gets()) is not _INCOMPLETE:
                answers.append(answer)
                if self._awaited and len(answers) == self._awaited[0][0]:
                    _, future = self._awaited.popleft()
                    if not future.done():
                        future.set_result(answers)
                    answers = self._answers = []
        except RedisConnectionError as error:  # it speaks no Redis
            self.close(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Redis has hung up."""
        self.close(RedisConnectionError(f"Redis closed the connection{f': {exc}' if exc else ''}"))


def pack(commands: Iterable[Command]) -> bytes:
    """Commands as they go over the wire; raises redis' DataError for what Redis cannot hold."""
    try:
        return b"".join([hiredis.pack_command(tuple(command)) for command in commands])  # type: ignore[arg-type]
    except TypeError as error:
        raise DataError(str(error)) from error


def call(script: str, keys: Sequence[str | bytes], arguments: Command) -> bytes:
    """The call of a Lua script, by its digest, as it goes over the wire."""
    digest = hashlib.sha1(script.encode()).hexdigest()  # noqa: S324  # Redis' own name for a script
    return pack([("EVALSHA", digest, len(keys), *keys, *arguments)])


class _Request:
    """What one caller has handed in: its commands, and where it waits for the answers."""

    __slots__ = ("answer", "count", "packet", "script")

    def __init__(self, packet: bytes, count: int, script: str | None = None) -> None:
        self.packet = packet
        self.count = count
        self.script = script
        self.answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()


class GroupCommit:
    """The calls of many coroutines to one Redis, over one connection, many in one packet.

    Nothing waits when idle: what finds no batch on its way leaves at once. Commands of one call are sent
    together and in order; between them others' may run, unless it is a script or `atomic`.

    Nothing is sent twice: when a batch got no answer, its calls raise redis' ConnectionError or
    TimeoutError, and may have been carried out all the same. While Redis takes no connections, calls wait
    for up to `PATIENCE` seconds. It belongs to the loop that it is first used on. Of `client`, which may be
    used elsewhere, it takes the address and how answers are read.
    """

    def __init__(self, client: Redis, *, timeout: float = TIMEOUT, patience: float = PATIENCE) -> None:
        self._client = client
        self._timeout, self._patience = timeout, patience
        self._wire: Wire | None = None
        self._waiting: deque[_Request] = deque()
        self._sent: list[_Request] = []
        self._connecting: asyncio.Task[None] | None = None
        self._busy = False

    async def commands(self, *commands: Command) -> list[Any]:
        """The answers as Redis gives them (bytes, int, list, None); raises the first error among them."""
        return _raised(await self._hand_in(_Request(pack(commands), len(commands))))

    async def pipeline(self, fill: Callable[[Pipeline], object], *, atomic: bool = False) -> list[Any]:
        """What redis-py's `execute` returns for the pipeline that `fill` has put commands on.

        `await redis.pipeline(lambda pipe: pipe.hgetall(key))` gives a list with one dict. With `atomic` they
        run in one transaction. Raises the first error among the answers.
        """
        pipe = self._client.pipeline(transaction=False)
        fill(pipe)
        stack: list[tuple[Command, dict[str, Any]]] = list(pipe.command_stack)
        if not stack:
            return []
        commands = [arguments for arguments, _ in stack]
        for _, options in stack:
            options.pop("keys", None)  # redis-py's own, for caches; no callback knows it
        if atomic:
            commands = [("MULTI",), *commands, ("EXEC",)]
        answers = _raised(await self._hand_in(_Request(pack(commands), len(commands))))
        callbacks = self._client.response_callbacks
        return [
            callbacks[name](answer, **options) if (name := cast(str, arguments[0])) in callbacks else answer
            for (arguments, options), answer in zip(
                stack, _raised(answers[-1]) if atomic else answers, strict=True
            )
        ]

    async def script(self, text: str, keys: Sequence[str | bytes], arguments: Command) -> Any:
        """Run a Lua script; what it returns."""
        packet = call(text, keys, arguments)
        while True:
            wire = self._wire
            try:
                return _raised(await self._hand_in(_Request(packet, 1, text)))[-1]
            except NoScriptError:  # somebody has flushed them
                if wire:
                    wire.forget(text)

    async def close(self) -> None:
        """Wait for what is on its way, then end the connection."""
        while self._busy:
            await asyncio.wait([request.answer for request in (*self._sent, *self._waiting)])
        if self._wire:
            self._wire.close(RedisConnectionError("closed"))

    async def _hand_in(self, request: _Request) -> list[Any]:
        self._waiting.append(request)
        if not self._busy:
            self._busy = True
            asyncio.get_running_loop().call_soon(self._flush)
        return await request.answer

    def _flush(self) -> None:
        """Send what waits, if anything does."""
        wire = self._wire
        if wire is None or wire.lost:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
            return
        packets, count, size = [], 0, 0
        self._sent = []
        while self._waiting and len(self._sent) < MAX_BATCH and size < MAX_BATCH_BYTES:
            request = self._waiting.popleft()
            if request.answer.done():  # nobody waits any more
                continue
            if request.script and (loading := wire.load(request.script)):
                packets.append(loading)
                request.count = 2
            packets.append(request.packet)
            count += request.count
            size += len(request.packet)
            self._sent.append(request)
        if not self._sent:
            self._busy = False
            return
        [answers] = wire.send(b"".join(packets), count)
        silence = RedisTimeoutError(f"Redis did not answer within {self._timeout:.0f} s")
        timer = asyncio.get_running_loop().call_later(self._timeout, wire.close, silence)

        def take(future: "asyncio.Future[list[Any]]") -> None:
            timer.cancel()
            self._answer(future)

        answers.add_done_callback(take)

    def _answer(self, future: "asyncio.Future[list[Any]]") -> None:
        error = future.exception()
        if isinstance(error, RedisError):
            self._refuse(self._sent, error)
        else:
            answers, at = future.result(), 0
            for request in self._sent:
                if not request.answer.done():
                    request.answer.set_result(answers[at : at + request.count])
                at += request.count
        self._flush()

    async def _connect(self) -> None:
        """Reach Redis and send what waits, or refuse it."""
        pause, deadline = 0.1, asyncio.get_running_loop().time() + self._patience
        while True:
            try:
                self._wire = await Wire.connect(self._client, self._timeout)
            except (RedisError, OSError) as error:
                if asyncio.get_running_loop().time() + pause < deadline:
                    await asyncio.sleep(pause)
                    pause = min(1.0, 2 * pause)
                    continue
                refused, self._waiting = list(self._waiting), deque()
                self._refuse(
                    refused, error if isinstance(error, RedisError) else RedisConnectionError(str(error))
                )
                self._busy = False
            else:
                self._flush()
            return

    @staticmethod
    def _refuse(requests: Iterable[_Request], error: RedisError) -> None:
        for request in requests:
            if not request.answer.done():
                request.answer.set_exception(type(error)(*error.args))  # each raises one of its own


def _raised(answers: list[Any]) -> list[Any]:
    """The answers, if none is an error."""
    for answer in answers:
        if isinstance(answer, (ResponseError, RedisError)):
            raise answer
    return answers
