"""Remove files that belong to nobody: what killed processes left here, and large bodies in storage."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from app.accept.records import Records
from app.core.lifecycle import Repair
from app.maintain.stray_claims import stray_claims
from app.maintain.strays import Strays
from app.storage.store import Storage
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


LOOK_EVERY = 600.0
"""Seconds between looks: each is a listing that a store may charge for."""


class StrayClaims:
    """`held_for` is how long a body is kept that no manifest tells of; `now` tells the Unix time."""

    def __init__(
        self, storage: Storage, records: Records, *, held_for: float, now: Callable[[], float]
    ) -> None:
        self._storage = storage
        self._records = records
        self._held_for = held_for
        self._now = now
        self._looked_at: float | None = None

    def run(self) -> Counter[Repair]:
        """Remove what belongs to nobody; how much that was. Raises errors of the storage and of redis."""
        if self._looked_at is not None and self._now() - self._looked_at < LOOK_EVERY:
            return Counter()
        self._looked_at = self._now()
        strays = list(
            stray_claims(self._storage, self._records, held_for=self._held_for, now=self._looked_at)
        )
        self._storage.remove(strays)
        for name in strays:
            log.warning(
                "mended: %s", Repair.CLAIM_REMOVED, extra={"repair": Repair.CLAIM_REMOVED, "object": name}
            )
        return Counter({Repair.CLAIM_REMOVED: len(strays)})
