"""One `outkeep up` per data folder: a lock that the kernel frees however its holder ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.core.errors import Permanent

LOCK = "up.lock"


@contextmanager
def claim(data: Path) -> Iterator[None]:
    """Hold `<data>/up.lock` for the length of the block; the file holds the pid of the holder.

    Raises Permanent `already_running` when another process holds it, `data_unusable` when the folder cannot
    be written to. Programs that we start do not inherit the lock.
    """
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(data / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(data, error) from error
    try:
        _take(lock, data)
        yield
    finally:
        # The file stays: removing it would let two processes lock two files of one name.
        os.close(lock)


def _take(lock: int, data: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace") or "unknown"
        message = (
            f"outkeep up already runs on {data} (pid {holder}): stop it first, or use another OUTKEEP_DATA"
        )
        raise Permanent("already_running", message) from error
    except OSError as error:
        raise _unusable(data, error) from error


def _unusable(data: Path, error: OSError) -> Permanent:
    reason = error.strerror or str(error)
    return Permanent(
        "data_unusable", f"cannot lock {data / LOCK}: {reason}; make OUTKEEP_DATA a writable folder"
    )
