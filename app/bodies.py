"""Reads request bodies within bounds: each of a largest size, all of them within one budget."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, TypeVar

from starlette.requests import Request

from app.core.errors import Rejected, Transient
from app.disk import make_folder
from app.limits import Limits

RETRY_AFTER = 5
TOO_LARGE = "body_too_large"

LARGE = 1 << 20
"""Bytes from which a body is worked on in a thread."""

T = TypeVar("T")


class Bodies:
    """The bodies in flight of one receiver.

    Small ones are free, so that those who hold the budget cannot keep real deliveries out. Large ones wait in
    temporary files, and few at a time are whole in memory.
    """

    def __init__(self, limits: Limits, *, max_body: int, folder: Path) -> None:
        """No body may be larger than `max_body` (bytes); temporary files are made in `folder`."""
        self._limits = limits
        self._max_body = max_body
        self._folder = folder
        self._left = limits.bodies
        self._turns = asyncio.Semaphore(limits.large_at_once)

    @asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, for the length of the block.

        Raises:
            Rejected: 415 `content_encoding`, 413 `body_too_large`.
            Transient: `busy` when the budget is spent, `no_room` when no temporary file can be written.
            ClientDisconnect: the sender is gone, or was too slow.
        """
        declared = self._examine(request)
        held = 0
        pieces = _Pieces(self._folder)
        try:
            held = self._hold(declared, held)
            async for piece in request.stream():
                pieces.add(piece)
                if pieces.size > self._max_body:
                    raise _too_large(self._max_body)
                held = self._hold(pieces.size, held)
                if len(pieces.memory) >= self._limits.spilled_body:
                    await pieces.spill()
            # Copies are made of what is verified and parsed: of small ones any number.
            async with self._turns if pieces.is_spilled else nullcontext():
                yield await pieces.whole()
        finally:
            pieces.close()
            self._left += held

    def _examine(self, request: Request) -> int:
        """What the head says of the body: its size, 0 when it does not say."""
        encodings = request.headers.getlist("content-encoding")
        if any(encoding.lower() != "identity" for encoding in encodings):
            raise Rejected("content_encoding", "compressed bodies are not accepted", status=415)
        declared = request.headers.get("content-length", "")
        size = int(declared) if declared.isdecimal() else 0
        if size > self._max_body:
            raise _too_large(self._max_body)
        return size

    def _hold(self, size: int, held: int) -> int:
        """Take from the budget what a body of `size` needs beyond the bytes `held`; what is held then."""
        if size <= max(held, self._limits.small_body):
            return held
        if size - held > self._left:
            raise Transient("busy", "too many large bodies at once; send it again", retry_after=RETRY_AFTER)
        self._left -= size - held
        return size


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


def _too_large(limit: int) -> Rejected:
    return Rejected(TOO_LARGE, f"the body is larger than {limit} bytes", status=413)
