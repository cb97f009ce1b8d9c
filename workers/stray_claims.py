"""Large bodies that wait in storage for nobody: a process died before, or after, a record led there."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator

from app.core.names import CLAIMS, manifest_name, split_claim_name
from app.core.repairs import CLAIM_AFTER, Repair
from app.records import Records
from app.storage import Storage

LOOK_EVERY = 600.0
"""Seconds between looks: each is a listing that a store may charge for."""

log = logging.getLogger("outkeep.sweep")


class StrayClaims:
    """The part of the sweep that looks at claims.

    Once the manifest is written, or the prediction removed, a body is needed no more, whoever still brings
    it. Without a manifest it stays while a record points to it, and for `held_for` seconds, so that no
    delivery of the same bytes can meet its removal. `now` tells the Unix time.
    """

    def __init__(
        self, storage: Storage, records: Records, *, held_for: float, now: Callable[[], float] = time.time
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
        strays = list(self._strays())
        self._storage.remove(strays)
        for name in strays:
            log.warning(
                "mended: %s", Repair.CLAIM_REMOVED, extra={"repair": Repair.CLAIM_REMOVED, "object": name}
            )
        return Counter({Repair.CLAIM_REMOVED: len(strays)})

    def _strays(self) -> Iterator[str]:
        for name, changed_at in self._storage.listed(CLAIMS):
            age = self._now() - changed_at.timestamp()
            if age >= CLAIM_AFTER and self._is_stray(name, age):
                yield name

    def _is_stray(self, name: str, age: float) -> bool:
        place = split_claim_name(name)
        if place is None:
            return False  # not ours
        kind, prediction_id, _ = place
        if self._storage.head(manifest_name(kind, prediction_id)) is not None:
            return True
        if self._records.is_removed(kind, prediction_id):
            return True
        record = self._records.get(kind, prediction_id)
        return age >= self._held_for and (record is None or record.body_at != name)
