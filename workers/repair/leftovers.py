"""Remove files that killed processes left on this host: downloads, and objects that were being written."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from app.core.repairs import Repair
from app.maintain.strays import Strays
from workers.keep.scratch import remove_abandoned

WALK_EVERY = 3600.0
"""Seconds between walks through the stored files, which may be millions."""

log = logging.getLogger("outkeep.sweep")


class Leftovers:
    """The half of the sweep that looks at files. `now` tells the Unix time."""

    def __init__(self, temporary: Path, strays: Strays, *, now: Callable[[], float] = time.time) -> None:
        self._temporary = temporary
        self._strays = strays
        self._now = now
        self._walked_at: float | None = None

    def run(self) -> Counter[Repair]:
        """Remove what belongs to nobody; how much that was. Raises OSError, and what `is_known` raises."""
        removed = remove_abandoned(self._temporary)
        removed += [path for path in self._strays.downloads() if _unlink(path)]
        if self._walk_is_due():
            removed += [path for path in self._strays.half_written() if _unlink(path)]
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


def _unlink(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
