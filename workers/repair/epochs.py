"""Notices that Redis has come back without what it held, and rebuilds that from the storage, once."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from redis import Redis

from app.core.errors import OutkeepError
from app.core.handlers import Handler
from app.core.names import REBUILD_TURN
from app.maintain.rebuild import Rebuild, object_of
from app.maintain.turns import turn
from app.storage.identity import Identity
from app.storage.store import Storage

LONGEST_RETRY = timedelta(days=4)
"""A notification is tried again for about three days: what was stored before that waits for nothing."""

log = logging.getLogger("outkeep.sweep")


class Epochs:
    """The part of the sweep that looks whether Redis still holds what it held. `ttl` is that of records."""

    def __init__(
        self,
        redis: Redis,
        storage: Storage,
        handlers: Sequence[Handler],
        *,
        ttl: int,
        clock: Callable[[], datetime],
    ) -> None:
        self._redis = redis
        self._storage = storage
        self._handlers = handlers
        self._ttl = ttl
        self._clock = clock
        self._identity = Identity(redis, storage)
        self._failing = False

    def run(self) -> None:
        """Let the epoch grow, or rebuild first; raises redis-py's errors."""
        try:
            self._identity.look()
            if not self._identity.is_lost():
                self._identity.advance()
            else:
                with turn(self._redis, REBUILD_TURN) as ours:
                    if ours and self._identity.is_lost():
                        self._rebuild()
            self._failing = False
        except OutkeepError as error:
            if not self._failing:
                log.warning("rebuilding is put off: %s", error.message)
            self._failing = True

    def _rebuild(self) -> None:
        """Restore what was stored within the life of a record; `outkeep rebuild` takes the rest."""
        oldest = self._clock() - max(timedelta(seconds=self._ttl), LONGEST_RETRY)
        log.error(
            "Redis has come back without data that it held; rebuilding it from the storage",
            extra={"since": oldest.isoformat()},
        )
        rebuild = Rebuild(
            self._redis, self._storage, self._handlers, ttl=self._ttl, everything=False, clock=self._clock
        )
        counts: Counter[str] = Counter(records=0, notifications=0, dead_letters=0)
        for line in rebuild.run(oldest=oldest, added=self._identity.look().handlers):
            if line.fault is not None:
                log.warning("%s could not be read for the rebuild: %s", object_of(line), line.fault)
            counts.update(records=line.record, notifications=line.jobs, dead_letters=line.dead_letters)
        if not self._redis.exists(REBUILD_TURN):  # emptied once more, and what was rebuilt with it
            log.warning("Redis has lost its data again while it was rebuilt; the next sweep begins anew")
            return
        self._identity.renew()
        log.warning("rebuilt from the storage", extra=dict(counts))
