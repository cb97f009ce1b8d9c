"""A temporary file, counted and hashed while it is written; the event loop never waits for the disk."""

import asyncio
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from app.core.errors import StorageFailure
from app.disk import floor_of
from app.storage.threads import Threads

_DISK = Threads("disk", 8)
"""So that a slow disk holds up downloads only."""

HEAD_BYTES = 4096
NOT_FETCHED = frozenset({"disk_full", "disk_error", "disk_floor"})
"""Codes of a disk that did not take a download: nothing is there then."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Spill:
    """A file of ours: `path`, `size` (bytes), `sha256` (hex) and `head`, its first `HEAD_BYTES`."""

    def __init__(self, folder: Path, *, floor: int | None, expected: int) -> None:
        """Leave `floor` bytes free (as `floor_of` has it); `expected` bytes are said to come."""
        self.path = folder
        self.size = 0
        self.head = b""
        self._folder = folder
        self._floor = floor
        self._expected = expected
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The hash of what was written so far."""
        return self._digest.hexdigest()

    async def open(self) -> None:
        """Make the file; raise `StorageFailure` (`disk_full`, `disk_error`, `disk_floor`)."""
        await self._in_thread(self._open)

    async def write(self, block: bytes) -> None:
        """Append `block`; raise as `open` does."""
        await self._in_thread(lambda: self._write(block))

    async def close(self) -> None:
        """Close the file and leave it where it is; raise as `open` does."""
        await self._in_thread(self._close)

    async def remove(self) -> None:
        """Close and unlink. Never raises: what stays behind, the sweep takes."""
        await self._in_thread(self._remove)

    def _open(self) -> None:
        require_room(self._folder, self._floor, self._expected)
        descriptor, name = tempfile.mkstemp(dir=self._folder, prefix="fetch-", suffix=".part")
        self.path = Path(name)
        self._file = os.fdopen(descriptor, "wb")

    def _write(self, block: bytes) -> None:
        assert self._file is not None
        require_room(self._folder, self._floor, len(block))
        self._file.write(block)
        self._digest.update(block)
        self.size += len(block)
        self.head += block[: HEAD_BYTES - len(self.head)]

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _remove(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # closing writes what is buffered, which fails again on a full disk
                self._file.close()
            with suppress(OSError):
                self.path.unlink()

    async def _in_thread(self, work: Callable[[], None]) -> None:
        """Run `work` in a thread and stay until it ends, even when cancelled: it uses the file."""
        running = asyncio.ensure_future(_DISK.run(work))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            running.exception()  # taken, so that asyncio does not report it as forgotten
            raise
        except OSError as error:
            raise disk_error(error, self._folder) from error


@asynccontextmanager
async def spilled(folder: Path, *, floor: int | None, expected: int) -> AsyncIterator[Spill]:
    """Open a new file of mode 0600 in `folder`; it stays after success and is gone after anything else.

    Arguments as for `Spill`. Raises `StorageFailure` (`disk_full`, `disk_error`, `disk_floor`), which names
    the folder.
    """
    spill = Spill(folder, floor=floor, expected=expected)
    try:
        await spill.open()
        yield spill
        await spill.close()
    except BaseException:
        await spill.remove()
        raise


def require_room(folder: Path, floor: int | None, size: int = 0) -> None:
    """Raise `StorageFailure` (`disk_floor`) unless `floor` bytes stay free when `size` more are written.

    What waits in the spool, and Redis' log, must never meet a disk that downloads have filled.
    """
    try:
        free, least = shutil.disk_usage(folder).free, floor_of(folder, floor)
    except OSError as error:
        raise disk_error(error, folder) from None
    if free - size < least:
        raise StorageFailure(
            "disk_floor",
            f"only {free >> 20} MiB are free on the disk of {folder}, and {least >> 20} MiB must stay so "
            "(OUTKEEP_DISK_FLOOR): make room",
        )


def disk_error(error: OSError, folder: Path) -> StorageFailure:
    """Name what the disk said: `disk_full`, or `disk_error` for everything else, such as a permission."""
    reason = f"{folder}: {error.strerror or error}"
    if error.errno in _FULL:
        return StorageFailure("disk_full", f"no room for temporary files in {reason}")
    return StorageFailure("disk_error", f"temporary files cannot be written in {reason}")
