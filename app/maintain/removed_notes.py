"""Notes in storage of what was removed: should Redis lose its mark, reconciliation must not bring it back.

A note holds when that was, and nothing else. It stands for longer than reconciliation looks back.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from app.core.manifest import farewell
from app.core.names import REMOVED, Kind, removed_name
from app.core.reconciling import FARTHEST_LOOK
from app.storage.store import Storage

LIFE = timedelta(seconds=FARTHEST_LOOK + 86400.0)

LOOK_EVERY = timedelta(hours=1)
"""Between two looks for old notes: each is a listing that a store may charge for."""


class RemovedNotes:
    """Methods raise the storage's errors."""

    def __init__(self, storage: Storage, clock: Callable[[], datetime]) -> None:
        self._storage = storage
        self._clock = clock
        self._looked_at: datetime | None = None

    def add(self, kind: Kind, prediction_id: str) -> None:
        """Note that a prediction is removed."""
        self._storage.put_bytes(removed_name(kind, prediction_id), farewell(self._clock()))

    def has(self, kind: Kind, prediction_id: str) -> bool:
        """Whether a prediction was removed lately."""
        return self._storage.head(removed_name(kind, prediction_id)) is not None

    def tidy(self) -> None:
        """Forget what was removed long ago."""
        now = self._clock()
        if self._looked_at is not None and now - self._looked_at < LOOK_EVERY:
            return
        self._looked_at = now
        self._storage.remove(
            [name for name, noted_at in self._storage.listed(REMOVED) if now - noted_at > LIFE]
        )
