"""Reads request bodies within bounds: each of a largest size, those of a sender and all within a budget."""

import asyncio
import math
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from app.core.addresses import Proxies
from app.core.answers import codings
from app.core.errors import Rejected, Transient
from app.disk import make_folder
from app.receive.limits import SHARE, Limits

RETRY_AFTER = 5
TOO_LARGE = "body_too_large"

CROWDED = 8
"""Once this part of the budget is taken, all but small bodies wait in files: many would fill the memory."""

LARGE = 1 << 20
"""Bytes from which a body is worked on in a thread."""

_ENCODING = b"content-encoding"

T = TypeVar("T")


@dataclass(eq=False)
class _Held:
    """What a body has taken of the budget, and how fast it comes."""

    stranger: str | None
    """Who has to bear it; None for a sender that has proven itself, and a proxy, which sends for many."""
    began: float
    """On the clock of the loop, as is `at`."""
    size: int = 0
    recent: float = 0.0
    """Bytes that came until `at`, half of them forgotten every second."""
    at: float = 0.0
    waiting: asyncio.Timeout | None = None
    dropped: bool = False

    def add(self, size: int, now: float) -> None:
        self.recent = self.recent * math.exp2(self.at - now) + size
        self.at = now
        self.size += size

    def pace(self, now: float) -> float:
        """How much comes lately; of a body that has just begun no less than of one that went on like this."""
        return self.recent * math.exp2(self.at - now) / max(1 - math.exp2(self.began - now), 0.001)


class Bodies:
    """The bodies in flight of one receiver.

    Small ones are free, so that those who hold the budget cannot keep real deliveries out. Large ones wait in
    temporary files, and few at a time are whole in memory. What has come counts, not what is promised.
    Where the budget is spent, the slowest body goes whose sender has not proven itself.
    """

    def __init__(self, limits: Limits, *, max_body: int, folder: Path, proxies: Proxies) -> None:
        """No body may be larger than `max_body` (bytes); temporary files are made in `folder`."""
        self._limits = limits
        self._max_body = max_body
        self._folder = folder
        self._proxies = proxies
        self._taken: Counter[str | None] = Counter()
        self._share = max(limits.bodies // SHARE, max_body)
        self._coming: set[_Held] = set()
        self._turns = asyncio.Semaphore(limits.large_at_once)

    @asynccontextmanager
    async def received(self, request: Request, *, proven: bool = False) -> AsyncIterator[bytes]:
        """The whole body, for the length of the block; `proven` when its sender has proven itself already.

        Raises:
            Rejected: 415 `content_encoding`, 413 `body_too_large`.
            Transient: `busy` when the budget is spent, `no_room` when no temporary file can be written.
            ClientDisconnect: the sender is gone, or was too slow.
        """
        self._examine(request)
        began = asyncio.get_running_loop().time()
        message = await _received(request, None)
        if not message.get("more_body") and len(message.get("body", b"")) <= self._limits.small_body:
            body: bytes = message.get("body", b"")
            if len(body) > self._max_body:
                raise _too_large(self._max_body)
            yield body  # as nearly all come: small, and at once
            return
        stranger = None if proven else self._proxies.stranger(request.client.host if request.client else None)
        held = _Held(stranger, began)
        pieces = _Pieces(self._folder)
        try:
            while True:
                pieces.add(message.get("body", b""))
                if pieces.size > self._max_body:
                    raise _too_large(self._max_body)
                if pieces.size > self._limits.small_body:
                    self._charge(held, pieces.size - held.size, proven=proven)
                is_crowded = self._taken.total() > self._limits.bodies // CROWDED
                if len(pieces.memory) >= (
                    self._limits.small_body if is_crowded else self._limits.spilled_body
                ):
                    await pieces.spill()
                if not message.get("more_body"):
                    break
                message = await _received(request, held)
            self._coming.discard(held)
            # Copies are made of what is verified and parsed: of small ones any number.
            async with self._turns if pieces.is_spilled else nullcontext():
                yield await pieces.whole()
        finally:
            pieces.close()
            self._release(held)

    def _examine(self, request: Request) -> None:
        """Refuse what the head says not to be ours."""
        encodings = [value.decode("latin-1") for name, value in request.headers.raw if name == _ENCODING]
        if encodings and codings(encodings):
            raise Rejected("content_encoding", "compressed bodies are not accepted", status=415)
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_body:
            raise _too_large(self._max_body)

    def _charge(self, held: _Held, size: int, *, proven: bool) -> None:
        """Take `size` more from the budget, from slower bodies where nothing is left; raises `Transient`."""
        if held.dropped:
            raise _busy()
        now = asyncio.get_running_loop().time()
        held.add(size, now)
        self._taken[held.stranger] += size
        if not proven:
            self._coming.add(held)
        while True:
            of_one = held.stranger is not None and self._taken[held.stranger] > self._share
            if not of_one and self._taken.total() <= self._limits.bodies:
                return
            rivals = (one for one in self._coming if not of_one or one.stranger == held.stranger)
            slowest = min(rivals, key=lambda one: one.pace(now), default=held)
            self._release(slowest)
            slowest.dropped = True
            if slowest is held:
                raise _busy()
            if slowest.waiting is not None:
                slowest.waiting.reschedule(now)

    def _release(self, held: _Held) -> None:
        if not held.dropped and held.size:
            self._coming.discard(held)
            self._taken[held.stranger] -= held.size
            if not self._taken[held.stranger]:
                del self._taken[held.stranger]


async def _received(request: Request, held: _Held | None) -> Message:
    """The next piece of a body; raises `Transient` when the body is dropped meanwhile."""
    if held is None or not held.size:  # what holds nothing is not dropped
        message = await request.receive()
    else:
        try:
            async with asyncio.timeout(None) as held.waiting:
                message = await request.receive()
        except TimeoutError:
            raise _busy() from None
        finally:
            held.waiting = None
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


class _Pieces:
    """A body as it comes: the latest piece in memory, what was before it perhaps in a file."""

    def __init__(self, folder: Path) -> None:
        self.size = 0
        self.memory = bytearray()
        self._folder = folder
        self._file: BinaryIO | None = None

    @property
    def is_spilled(self) -> bool:
        return self._file is not None

    def add(self, piece: bytes) -> None:
        self.memory += piece
        self.size += len(piece)

    async def spill(self) -> None:
        """Move what is in memory to the file; raises `Transient`."""
        content, self.memory = self.memory, bytearray()
        try:
            await asyncio.to_thread(self._write, content)
        except OSError as error:
            message = f"no temporary file can be written in {self._folder}: {error.strerror}"
            raise Transient("no_room", message, retry_after=RETRY_AFTER) from error

    async def whole(self) -> bytes:
        if self._file is None:
            return bytes(self.memory)
        await self.spill()
        return await asyncio.to_thread(self._read, self._file)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, content: bytearray) -> None:
        if self._file is None:
            make_folder(self._folder, mode=0o700)
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        self._file.write(content)

    def _read(self, file: BinaryIO) -> bytes:
        file.seek(0)
        return file.read()


async def apart(size: int, work: Callable[[], T]) -> T:
    """Work on a body of `size` bytes; a large one takes so long that others would wait for their answers."""
    return await asyncio.to_thread(work) if size > LARGE else work()


def _busy() -> Transient:
    return Transient("busy", "too many large bodies at once; send it again", retry_after=RETRY_AFTER)


def _too_large(limit: int) -> Rejected:
    return Rejected(TOO_LARGE, f"the body is larger than {limit} bytes", status=413)
