"""Files on this host that belong to nobody any more: the sweep removes them, the doctor names them."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.core.lifecycle import is_half_written, is_stray_download
from app.core.names import CLAIMS, Kind, held_place

WORKER_PREFIX = "worker-"
"""How the folder for the temporary files of one process is named; it is locked while the process lives."""


class Strays:
    """Looks for such files and changes nothing.

    `temporary` is the folder for temporary files, `outputs` the one of stored files (None: a remote store).
    Downloads that wait for the storage stay for `held_for` seconds, and as long as `is_known` says that their
    prediction has a record: it may wait for the operator. Those of what `is_removed`, or `is_kept` by another
    host, go at once. `now` tells the Unix time.
    """

    def __init__(
        self,
        temporary: Path,
        outputs: Path | None,
        *,
        held_for: float,
        is_known: Callable[[Kind, str], bool],
        is_removed: Callable[[Kind, str], bool],
        is_kept: Callable[[Kind, str], bool],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._temporary = temporary
        self._outputs = outputs
        self._held_for = held_for
        self._is_known = is_known
        self._is_removed = is_removed
        self._is_kept = is_kept
        self._now = now

    def downloads(self) -> Iterator[Path]:
        """Temporary files that nobody will ask for; raises OSError, and what Redis raises."""
        # Also in the folder of a process that lives and failed to remove one.
        for folder in (self._temporary, *self._temporary.glob(f"{WORKER_PREFIX}*")):
            for path, age in self._files_in(folder):
                if self._is_stray(path.name, age):
                    yield path

    def half_written(self) -> Iterator[Path]:
        """What killed writes left beside stored files, of which there may be millions; raises OSError."""
        if self._outputs is None:
            return
        shelves = [self._outputs / name for name in (*(kind.folder for kind in Kind), "quarantine")]
        inner = (folder for shelf in shelves for folder in _folders_in(shelf))
        for folder in (self._outputs / CLAIMS, *inner):
            for path, age in self._files_in(folder):
                if is_half_written(path.name, age):
                    yield path

    def _is_stray(self, name: str, age: float) -> bool:
        place = held_place(name)
        # Another host may have fetched and stored all of it meanwhile: then nobody comes for this copy.
        if place is not None and (self._is_removed(*place) or self._is_kept(*place)):
            return True
        stray = is_stray_download(name, age, held_for=self._held_for)
        return stray and not (place is not None and self._is_known(*place))

    def _files_in(self, folder: Path) -> Iterator[tuple[Path, float]]:
        """Each file with the seconds since its last change."""
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        changed_at = entry.stat(follow_symlinks=False).st_mtime
                        yield Path(entry.path), self._now() - changed_at


def abandoned(temporary: Path) -> list[Path]:
    """The folders of processes that have died; raises OSError. Only within `locked(temporary)` is it true."""
    return [folder for folder in temporary.glob(f"{WORKER_PREFIX}*") if _is_abandoned(folder)]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder: between making a folder in it and locking that, nobody may step in."""
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


def _folders_in(folder: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)
