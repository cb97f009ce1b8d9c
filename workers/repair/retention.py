"""Removes what is older than `OUTKEEP_RETENTION`: once an hour, a bounded piece at a time, in one process."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta

from redis import Redis
from redis.exceptions import LockError
from redis.lock import Lock

from app.accept.quarantine import is_older
from app.core.errors import Permanent, Removed
from app.core.names import COUNTERS, QUARANTINE, RETENTION_TURN, Kind
from app.core.vocabulary import REMOVED
from app.maintain.backlog import Traces
from app.maintain.removal import Found, Removal
from app.storage.store import Folder, Storage, folders
from app.telemetry.tally import series

EVERY = 3600
"""Seconds between two walks through all that is stored."""

LEASE = 300
"""Seconds after which the lease of a process that died during its walk expires."""

PIECE = 15.0
"""Seconds of one piece of a walk: other repairs of this process wait for it."""

FRESH = 2.0
"""Seconds for which the lists of jobs are good: to read them for each prediction would take too much."""

RETENTION = "retention"
"""The cause, as metrics name it."""

log = logging.getLogger("outkeep.retention")


class Retention:
    """A walk that is taken up where its last piece ended. `age` is in seconds."""

    def __init__(
        self,
        redis: Redis,
        storage: Storage,
        removal: Removal,
        *,
        age: int,
        clock: Callable[[], datetime],
        piece: float = PIECE,
    ) -> None:
        self._redis = redis
        self._storage = storage
        self._removal = removal
        self._age = timedelta(seconds=age)
        self._clock = clock
        self._piece = piece
        self._lease = self._new_lease()
        self._walk: Iterator[Counter[str]] | None = None
        self._traces: tuple[float, Traces] | None = None

    def run(self) -> Counter[str]:
        """Walk a piece if we have the lease; what is gone, by kind. Raises errors of storage and Redis."""
        if not self._has_lease():
            self._walk = None
            return Counter()
        removed: Counter[str] = Counter()
        walk, self._walk = self._walk or self._steps(), None
        until = time.monotonic() + self._piece
        try:
            for step in walk:
                removed.update(step)
                if time.monotonic() > until:
                    self._walk = walk
                    return removed
        finally:
            self._say(removed)
        with suppress(LockError):  # it was lost meanwhile: whoever has it walks
            self._lease.extend(EVERY, replace_ttl=True)
        self._lease = self._new_lease()  # so that nobody has it until it expires
        return removed

    def _new_lease(self) -> Lock:
        lease: Lock = self._redis.lock(RETENTION_TURN, timeout=LEASE, thread_local=False)
        return lease

    def _has_lease(self) -> bool:
        try:
            return bool(self._lease.reacquire())
        except LockError:
            return bool(self._lease.acquire(blocking=False))

    def _steps(self) -> Iterator[Counter[str]]:
        limit = self._clock() - self._age
        for kind in Kind:
            for folder in folders(self._storage, kind):
                yield self._retire(folder, limit) if _may_be_due(folder, limit) else Counter()
        for name, changed_at in self._storage.listed(QUARANTINE):
            if is_older(self._storage, name, changed_at, limit):
                self._storage.remove([name])
                yield Counter({QUARANTINE: int(name.endswith(".json"))})
            else:
                yield Counter()

    def _retire(self, folder: Folder, limit: datetime) -> Counter[str]:
        if not self._is_due(folder, limit):
            return Counter()
        size = sum(stored.size for stored in folder.objects.values())
        jobs = self._jobs().of(*folder.place)
        found = Found(*folder.place, objects=sorted(folder.objects), size=size, jobs=jobs)
        # What waits or runs ends first: a handler is told what it was promised, or its dead letter goes too.
        if not all(job.has_ended for job in jobs) or self._removal.retire(found) is None:
            return Counter()
        log.info(
            "removed, since it is older than OUTKEEP_RETENTION", extra={"kind": folder.kind, "id": folder.id}
        )
        return Counter({folder.kind: 1, "objects": len(found.objects), "bytes": size})

    def _is_due(self, folder: Folder, limit: datetime) -> bool:
        try:
            manifest = self._storage.read_manifest(*folder.place)
        except Removed:
            return True
        except Permanent as error:
            facts = {"kind": folder.kind, "id": folder.id}
            log.warning("it is not removed, although it is old: %s", error.message, extra=facts)
            return False
        return manifest is None or manifest.stored_at <= limit

    def _jobs(self) -> Traces:
        now = time.monotonic()
        if self._traces is None or now - self._traces[0] > FRESH:
            self._traces = (now, Traces(self._redis))
        return self._traces[1]

    def _say(self, removed: Counter[str]) -> None:
        for kind in (*Kind, QUARANTINE):
            if removed[kind]:
                self._redis.hincrby(COUNTERS, series(REMOVED, [kind, RETENTION]), removed[kind])
        if removed:
            log.info("removed what is older than OUTKEEP_RETENTION", extra=dict(removed))


def _may_be_due(folder: Folder, limit: datetime) -> bool:
    """By what the listing says, so that nothing young is read."""
    if folder.manifest is not None and len(folder.objects) > 1:
        # Half of a removal has a new note in the place of its manifest; what is left beside it is old.
        return min(stored.changed_at for stored in folder.objects.values()) <= limit
    return max(stored.changed_at for stored in folder.objects.values()) <= limit
