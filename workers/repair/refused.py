"""Fetch what was refused, once the operator has permitted it, while it still exists."""

from collections import Counter
from collections.abc import Callable
from datetime import datetime

from redis import Redis

from app.accept.records import Records
from app.core.hosts import HostRules
from app.core.lifecycle import State
from app.core.names import Kind
from app.core.repairs import Repair
from app.maintain.gaps import RecordGap
from app.storage.store import Storage
from workers.repair.sweep import Sweep


class Refused:
    """Looks at each prediction once: rules change with a restart, so every process looks for itself."""

    def __init__(
        self, redis: Redis, storage: Storage, rules: HostRules, *, ttl: int, clock: Callable[[], datetime]
    ) -> None:
        self._records = Records(redis, ttl=ttl)
        self._sweep = Sweep(redis, ttl=ttl, clock=clock)
        self._storage = storage
        self._rules = rules
        self._clock = clock
        self._seen: set[tuple[Kind, str]] = set()

    def run(self) -> Counter[Repair]:
        """Make a job for each prediction of which something may be fetched now; how many there were.

        Raises redis' errors and what `Storage` raises.
        """
        mended: Counter[Repair] = Counter()
        listed = self._records.refused(self._clock())
        self._seen.intersection_update(listed)
        for place in listed:
            if place in self._seen:
                continue
            manifest = self._storage.read_manifest(*place)
            refused = manifest.refused.values() if manifest else ()
            if any(file.source and self._rules.permits(file.source) for file in refused):
                assert manifest is not None
                gap = RecordGap(Repair.OUTPUT_SOUGHT, *place, State.DISPATCHED, manifest.receipt.received_at)
                if self._sweep.mend(gap):
                    mended[gap.repair] += 1
            self._seen.add(place)
        return mended
