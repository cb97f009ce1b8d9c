"""Files that killed processes left on this host: downloads, and objects that were being written."""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from app.core.names import Kind
from app.core.repairs import Repair, is_half_written, is_stray_download
from workers.hold import held_place
from workers.scratch import remove_abandoned

WALK_EVERY = 3600.0
"""Seconds between walks through the stored files, which may be millions."""

log = logging.getLogger("outkeep.sweep")


class Leftovers:
    """The half of the sweep that looks at files.

    `temporary` is the folder for temporary files, `outputs` the one of stored files (None: a remote store).
    Downloads that wait for the storage stay for `held_for` seconds, and as long as `is_known` says that their
    prediction has a record: it may wait for the operator. `now` tells the Unix time.
    """

    def __init__(
        self,
        temporary: Path,
        outputs: Path | None,
        *,
        held_for: float,
        is_known: Callable[[Kind, str], bool],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._temporary = temporary
        self._outputs = outputs
        self._held_for = held_for
        self._is_known = is_known
        self._now = now
        self._walked_at: float | None = None

    def run(self) -> Counter[Repair]:
        """Remove what belongs to nobody; how much that was. Raises OSError, and what `is_known` raises."""
        removed = remove_abandoned(self._temporary)
        removed += [path for path in self._strays() if _unlink(path)]
        if self._walk_is_due():
            removed += [path for path in self._half_written() if _unlink(path)]
        for path in removed:
            log.warning(
                "mended: %s", Repair.FILE_REMOVED, extra={"repair": Repair.FILE_REMOVED, "file": str(path)}
            )
        return Counter({Repair.FILE_REMOVED: len(removed)})

    def _walk_is_due(self) -> bool:
        due = self._walked_at is None or self._now() - self._walked_at >= WALK_EVERY
        if due:
            self._walked_at = self._now()
        return due

    def _strays(self) -> Iterator[Path]:
        # Also in the folder of a process that lives and failed to remove one.
        for folder in (self._temporary, *self._temporary.glob("worker-*")):
            for path, age in self._files_in(folder):
                if is_stray_download(path.name, age, held_for=self._held_for) and not self._is_wanted(path):
                    yield path

    def _is_wanted(self, path: Path) -> bool:
        place = held_place(path.name)
        return place is not None and self._is_known(*place)

    def _half_written(self) -> Iterator[Path]:
        if self._outputs is None:
            return
        for shelf in (*(kind.folder for kind in Kind), "quarantine"):
            for folder in _folders_in(self._outputs / shelf):
                for path, age in self._files_in(folder):
                    if is_half_written(path.name, age):
                        yield path

    def _files_in(self, folder: Path) -> Iterator[tuple[Path, float]]:
        """Each file with the seconds since its last change."""
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        changed_at = entry.stat(follow_symlinks=False).st_mtime
                        yield Path(entry.path), self._now() - changed_at


def _folders_in(folder: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _unlink(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
