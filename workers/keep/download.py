"""A download on this host: its bytes in memory or in a temporary file, and parked until the storage takes it.

What is small stays in memory until it is stored, as far as that goes for all downloads together. All else
goes into a temporary file, block by block, and is hashed on its way. A file that the storage did not take is
parked in a folder that outlives the process: its hour may pass before the storage is mended.
"""

import asyncio
import errno
import hashlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from app.core.errors import StorageFailure
from app.core.names import Kind, held_digest, held_mark, held_name
from app.disk import floor_of, write
from app.storage.threads import Threads

SMALL = 1 << 20
"""Bytes below which a file stays in memory until it is stored."""

MEMORY = 64 << 20
"""Bytes that all downloads of a process hold in memory; beyond that they go to the disk in small blocks."""

BLOCK, SMALL_BLOCK = 1 << 20, 256 << 10
"""Bytes that are hashed and written in one call: usually, and where there is no memory."""

ROOM_FOR = 32 << 20
"""Bytes after which the room on the disk is looked at again: others write, too."""

HEAD_BYTES = 4096
NOT_FETCHED = frozenset({"disk_full", "disk_error", "disk_floor"})
"""Codes of a disk that did not take a download: nothing is there then."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_DISK = Threads("disk", 8)
"""So that a slow disk holds up downloads only."""


class Memory:
    """Bytes that the downloads on one event loop may hold in memory."""

    def __init__(self, size: int = MEMORY) -> None:
        self._left = size
        self._returned: deque[int] = deque()  # by any thread

    def take(self, size: int) -> "Claim | None":
        """A claim to so many bytes; None when there are not so many left."""
        while self._returned:
            self._left += self._returned.popleft()
        if size > self._left:
            return None
        self._left -= size
        return Claim(size, self._returned.append)


class Claim:
    """Given back when nobody holds it any more, however a download ends."""

    __slots__ = ("_give_back", "_size")

    def __init__(self, size: int, give_back: Callable[[int], None]) -> None:
        self._size, self._give_back = size, give_back

    def __del__(self) -> None:
        self._give_back(self._size)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that belongs to the caller now: in memory (`data`), or on our disk (`path`).

    `size` is in bytes, `head` the first 4096 bytes; `content_type` is a bare media type as the host declared
    it; `url` is the address after all redirects.
    """

    path: Path | None
    size: int
    sha256: str
    """In hex; empty as long as it is in memory, see `digest`."""
    head: bytes
    content_type: str | None
    url: str
    name: str = ""
    """What its owner calls it, where that is known: its extension may tell more than the URL's."""
    declared: str | None = None
    """The extension of the type that the host declared, if `media` knows it."""
    encoding: str | None = None
    """The `Content-Encoding` that its bytes still have."""
    data: bytes | None = None
    claims: tuple[Claim, ...] = ()

    def digest(self) -> str:
        """The SHA-256 in hex; what is in memory is hashed now."""
        return self.sha256 if self.data is None else hashlib.sha256(self.data).hexdigest()

    def read(self) -> bytes:
        """All bytes of it, which remain its own."""
        return self.data if self.path is None else self.path.read_bytes()  # type: ignore[return-value]

    def remove(self) -> None:
        """Remove what there is of it on the disk."""
        if self.path is not None:
            self.path.unlink()


class Download:
    """The bytes of one file as they come: `size` of them so far, of which `head` are the first."""

    def __init__(self, folder: Path, memory: Memory, *, floor: int | None, expected: int | None) -> None:
        """Leave `floor` bytes of the disk free (as `floor_of` has it); `expected` bytes are said to come."""
        self.size = 0
        self.head = b""
        self._folder = folder
        self._memory = memory
        self._floor = floor
        self._expected = expected or 0
        self._blocks: list[bytes] = []
        self._gathered = 0
        self._claims: list[Claim] = []
        self._path: Path | None = None
        self._descriptor = -1
        self._digest = hashlib.sha256()
        self._writing: asyncio.Future[None] | None = None
        self._next_look = 0
        self._is_small = self._expected < SMALL and self._claim(self._expected)

    async def open(self) -> None:
        """Make a file for what will not stay in memory.

        Raises `StorageFailure` (`disk_full`, `disk_error`, `disk_floor`), which names the folder, as `add`
        and `close` do.
        """
        if not self._is_small:
            self._claim(2 * BLOCK)
            await self._write()
            await self._settle()

    @property
    def block(self) -> int:
        """Bytes that are written, or claimed, at once."""
        return BLOCK if self._claims and (self._expected or not self._is_small) else SMALL_BLOCK

    async def add(self, pieces: list[bytes], size: int) -> None:
        """Take `size` bytes more. What goes to the disk is written while the next bytes come."""
        self.size += size
        if len(self.head) < HEAD_BYTES:
            self.head = b"".join([self.head, *pieces])[:HEAD_BYTES]
        self._blocks += pieces
        self._gathered += size
        if self._is_small:
            claimed = self.size <= self._expected or self._claim(size)
            if self.size < SMALL and claimed:
                return
            self._is_small = False
            self._claims.clear()
            self._claim(2 * BLOCK)
        if self._gathered >= self.block:
            await self._write()

    async def close(self) -> None:
        """Return when all bytes are hashed and written, or in memory."""
        if not self._is_small:
            await self._write()
            await self._settle()
            descriptor, self._descriptor = self._descriptor, -1
            self._writing = _DISK.run(partial(os.close, descriptor))
            await self._settle()

    def sha256(self) -> str:
        """The hash of a closed one, in hex."""
        return self._digest.hexdigest() if self._path else hashlib.sha256(b"".join(self._blocks)).hexdigest()

    def fetched(
        self, content_type: str | None, url: str, *, declared: str | None = None, encoding: str | None = None
    ) -> "Fetched":
        """A closed one, handed over with what is known of it."""
        about: dict[str, Any] = {"declared": declared, "encoding": encoding}
        if self._path is not None:
            return Fetched(self._path, self.size, self.sha256(), self.head, content_type, url, **about)
        data = b"".join(self._blocks)
        about |= {"data": data, "claims": tuple(self._claims)}
        return Fetched(None, self.size, "", self.head, content_type, url, **about)

    async def discard(self) -> None:
        """Remove what there is. Never raises: what stays behind, the sweep takes."""
        self._blocks.clear()
        self._claims.clear()
        if self._writing is not None:
            await asyncio.wait([self._writing])  # it uses the file
            self._writing.exception()  # taken, so that asyncio does not report it as forgotten
        with suppress(OSError):
            if self._descriptor >= 0:
                os.close(self._descriptor)
        with suppress(OSError):
            if self._path is not None:
                self._path.unlink()

    def _claim(self, size: int) -> bool:
        claim = self._memory.take(size)
        if claim is not None:
            self._claims.append(claim)
        return claim is not None

    async def _write(self) -> None:
        await self._settle()
        blocks, self._blocks, self._gathered = self._blocks, [], 0
        self._writing = _DISK.run(partial(self._append, blocks))

    async def _settle(self) -> None:
        """Wait for the write that is under way."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
            written, self._writing = self._writing, None
            with _disk_errors(self._folder):
                written.result()

    def _append(self, blocks: list[bytes]) -> None:
        data = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        blocks.clear()
        if self._path is None:
            require_room(self._folder, self._floor, max(self._expected, len(data)))
            self._descriptor, name = tempfile.mkstemp(dir=self._folder, prefix="fetch-", suffix=".part")
            self._path, self._next_look = Path(name), ROOM_FOR
        elif self.size >= self._next_look:
            require_room(self._folder, self._floor, len(data))
            self._next_look = self.size + ROOM_FOR
        write(self._descriptor, data)
        self._digest.update(data)


def require_room(folder: Path, floor: int | None, size: int = 0) -> None:
    """Raise `StorageFailure` (`disk_floor`) unless `floor` bytes stay free when `size` more are written.

    What waits in the spool, and Redis' log, must never meet a disk that downloads have filled.
    """
    with _disk_errors(folder):
        free, least = shutil.disk_usage(folder).free, floor_of(folder, floor)
    if free - size < least:
        raise StorageFailure(
            "disk_floor",
            f"only {free >> 20} MiB are free on the disk of {folder}, and {least >> 20} MiB must stay so "
            "(OUTKEEP_DISK_FLOOR): make room",
        )


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Name what the disk said: `disk_full`, or `disk_error` for everything else, such as a permission."""
    try:
        yield
    except OSError as error:
        reason = f"{folder}: {error.strerror or error}"
        if error.errno in _FULL:
            raise StorageFailure("disk_full", f"no room for temporary files in {reason}") from error
        raise StorageFailure("disk_error", f"temporary files cannot be written in {reason}") from error


def park(fetched: Fetched, folder: Path, kind: Kind, prediction_id: str, number: int) -> None:
    """Put a file where `parked` finds it, as far as the disk lets us.

    The name holds the hash: after a power cut the file may not have all its bytes.
    """
    with suppress(OSError):
        digest = fetched.digest() + held_mark(fetched.declared, fetched.encoding)
        path = fetched.path
        if path is None:
            descriptor, name = tempfile.mkstemp(dir=folder, prefix="fetch-", suffix=".part")
            path = Path(name)
            with os.fdopen(descriptor, "wb") as file:
                file.write(fetched.read())
        path.rename(folder / held_name(kind, prediction_id, number, digest))


def parked(folder: Path, kind: Kind, prediction_id: str, number: int) -> Fetched | None:
    """The download that an earlier run on this host could not store, if all of it is there."""
    for path in folder.glob(held_name(kind, prediction_id, number, "*")):
        with suppress(OSError):
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = os.fstat(file.fileno()).st_size
            wanted, declared, encoding = held_digest(path.name)
            if digest == wanted:
                return Fetched(path, size, digest, head, None, "", declared=declared, encoding=encoding)
            path.unlink()
    return None
