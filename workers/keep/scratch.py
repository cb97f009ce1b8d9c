"""A folder for the temporary files of one process. What a killed process left, another one removes."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.core.errors import Permanent

PREFIX = "worker-"
"""How the names of these folders begin."""


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Give a new folder below `parent`, locked for the length of the block and removed with all in it.

    Any number of processes may share `parent`; folders whose process has died are removed at the start.
    Raises Permanent `data_unusable` when `parent` cannot be written to.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Between a folder and its lock, or between the test of a lock and the removal, nobody may step in.
        with _locked(parent):
            _remove_abandoned(parent)
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            own = os.open(folder, os.O_RDONLY)
            fcntl.flock(own, fcntl.LOCK_EX)
    except OSError as error:
        reason = f"{error.filename or parent}: {error.strerror}"
        message = f"no temporary files can be written in {reason}; make OUTKEEP_DATA a writable folder"
        raise Permanent("data_unusable", message) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(own)


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove the folders of processes that have died, and give their paths; raises OSError."""
    if not parent.is_dir():
        return []
    with _locked(parent):
        return _remove_abandoned(parent)


def _remove_abandoned(parent: Path) -> list[Path]:
    found = [folder for folder in parent.glob(f"{PREFIX}*") if _is_abandoned(folder)]
    for folder in found:
        shutil.rmtree(folder, ignore_errors=True)
    return found


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_abandoned(folder: Path) -> bool:
    """Whether nobody holds its lock: the kernel frees it however its process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
