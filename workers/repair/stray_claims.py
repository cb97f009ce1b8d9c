"""The part of the sweep that removes large bodies that wait in storage for nobody."""

import logging
from collections import Counter
from collections.abc import Callable

from app.accept.records import Records
from app.core.repairs import Repair
from app.maintain.stray_claims import stray_claims
from app.storage.store import Storage

LOOK_EVERY = 600.0
"""Seconds between looks: each is a listing that a store may charge for."""

log = logging.getLogger("outkeep.sweep")


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
