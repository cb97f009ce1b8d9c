"""Rebuild a Redis that lost its data, and notify handlers that other processes did not know."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import cast

from redis import Redis
from rq.worker.base import BaseWorker

from app.accept import queues
from app.core.errors import OutkeepError
from app.core.fleet import Process
from app.core.handlers import Handler
from app.core.lifecycle import State
from app.core.names import (
    CAUGHT_UP,
    PERSIST_QUEUE,
    REBUILD_TURN,
    RECORDS,
    Kind,
    catch_up_turn,
    manifest_name,
    record_key,
    split_member,
)
from app.health import presence
from app.maintain.lease import leased
from app.maintain.rebuild import Rebuild, object_of
from app.storage.identity import Identity, read
from app.storage.store import Folder, Storage

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
                with leased(self._redis, REBUILD_TURN) as ours:
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


LEASE = 50
"""Seconds for which nobody else with the same handlers file looks."""

OVERLAP = 120.0
"""Seconds that a look goes back behind the one before: clocks of hosts differ, and records move on late."""

_PAGE = 500


class CatchUp:
    """The part of the sweep that each process runs for handlers that it knows and another one does not."""

    def __init__(
        self,
        redis: Redis,
        storage: Storage,
        own: Process,
        handlers: Sequence[Handler],
        *,
        ttl: int,
        clock: Callable[[], datetime],
    ) -> None:
        self._redis = redis
        self._storage = storage
        self._own = own
        self._handlers = handlers
        self._ttl = ttl
        self._clock = clock

    def run(self) -> None:
        """Tell what is owed; raises redis-py's errors and the storage's."""
        presence.tidy(self._redis)
        missed = self._missed()
        known = [handler for handler in self._handlers if handler.name not in missed]
        if known:
            self._redis.hdel(CAUGHT_UP, *(handler.name for handler in known))
        lacking = [handler for handler in self._handlers if handler.name in missed]
        mark = ",".join(f"{name}={self._own.handlers.get(name)}" for name in sorted(missed))
        # The lease is never given back: it expires.
        if lacking and self._redis.lock(catch_up_turn(mark), timeout=LEASE).acquire(blocking=False):
            self._tell(lacking)

    def _missed(self) -> set[str]:
        """The names of our handlers that a process does not know, or did not a while ago, that stores."""
        storing = [one for one in presence.others(self._redis, alive=False) if one.role == PERSIST_QUEUE]
        said = {(one.host, one.pid) for one in storing}
        workers = BaseWorker.all(queue=queues.queue(PERSIST_QUEUE, self._redis))
        names = {handler.name for handler in self._handlers}
        if any((worker.hostname, worker.pid) not in said for worker in workers):
            return names  # an older version, which says nothing of itself
        return {name for name in names if any(name not in one.handlers for one in storing)}

    def _tell(self, handlers: Sequence[Handler]) -> None:
        began = self._clock().timestamp()
        added = read(self._storage).handlers
        marks = cast(list[bytes | None], self._redis.hmget(CAUGHT_UP, [one.name for one in handlers]))
        first = began - presence.REMEMBERED
        since = min(float(mark) - OVERLAP if mark else first for mark in marks)
        rebuild = Rebuild(
            self._redis, self._storage, handlers, ttl=self._ttl, everything=False, clock=self._clock
        )
        # What is told already, or has a job, is seen there and skipped.
        told = sum(line.jobs for line in rebuild.run(self._stored(since), added=added))
        self._redis.hset(CAUGHT_UP, mapping={handler.name: str(began) for handler in handlers})
        if told:
            log.warning("told handlers of what other processes have stored", extra={"notifications": told})

    def _stored(self, since: float) -> Iterator[Folder]:
        """What was dispatched since then, without what nobody was to be told of."""
        members = cast(list[bytes], self._redis.zrange(RECORDS, since, "+inf", byscore=True))
        for start in range(0, len(members), _PAGE):
            places = [split_member(member.decode()) for member in members[start : start + _PAGE]]
            with self._redis.pipeline(transaction=False) as pipeline:
                for place in places:
                    pipeline.hmget(record_key(*place), "state", "quiet")
                answers = pipeline.execute()
            for place, (state, quiet) in zip(places, answers, strict=True):
                if state == State.DISPATCHED.encode() and quiet is None:
                    yield from self._folder(*place)

    def _folder(self, kind: Kind, prediction_id: str) -> Iterator[Folder]:
        name = manifest_name(kind, prediction_id)
        if (manifest := self._storage.head(name)) is not None:
            yield Folder(kind, prediction_id, {name: manifest})
