"""The thread that repairs once a minute, and rebuilds a Redis that has come back without its data."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Self, cast

from redis import Redis
from redis.exceptions import RedisError
from rq.worker.base import BaseWorker

from app.accept import queues
from app.accept.inbox import connect
from app.accept.quarantine import Quarantine
from app.accept.records import Records
from app.clock import Clock
from app.core.errors import OutkeepError
from app.core.fleet import Process
from app.core.handlers import Handler
from app.core.lifecycle import Repair, State
from app.core.names import (
    CAUGHT_UP,
    COUNTERS,
    PERSIST_QUEUE,
    REBUILD_TURN,
    RECORDS,
    SWEEP_TURN,
    SWEPT,
    Kind,
    catch_up_turn,
    manifest_name,
    record_key,
    split_member,
)
from app.core.vocabulary import REPAIRS
from app.deployment import Deployment
from app.health import presence
from app.health.presence import process_of
from app.maintain.rebuild import Rebuild, object_of
from app.maintain.removal import Removal, RemovedNotes
from app.maintain.strays import Strays
from app.maintain.turns import turn
from app.settings import Settings
from app.storage.identity import Identity, read
from app.storage.store import Folder, Storage
from app.telemetry.tally import series
from workers.repair.files import Leftovers, StrayClaims
from workers.repair.retention import Retention
from workers.repair.sweep import Ends, Refused, Sweep

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


TURN = 50
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
        if lacking and self._redis.set(catch_up_turn(mark), 1, nx=True, ex=TURN):
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


EVERY = 60.0
"""Seconds between sweeps."""

TIMEOUT = 5.0
"""Seconds after which a silent Redis is an error."""

Part = Callable[[], Counter[Repair]]
"""Mends something and tells how often which repair was made."""


def sweeper_of(queue: str, deployment: Deployment, users: Sequence[str]) -> "Sweeper":
    """What the worker process of a queue sweeps; files are looked after by those that download them.

    `users` are the queues that hold jobs of the user's.
    """
    settings, clock = deployment.settings, deployment.clock
    redis = connect(deployment.redis_url, timeout=TIMEOUT)
    storage = Storage(settings.storage_url)
    records = Records(redis, ttl=settings.record_ttl)
    own = process_of(deployment, queue)
    catch_up = CatchUp(redis, storage, own, deployment.handlers, ttl=settings.record_ttl, clock=clock)
    local: Part | None = None
    tidy = None
    if queue == PERSIST_QUEUE:
        outputs = storage.folder

        def is_known(kind: Kind, prediction_id: str) -> bool:
            return records.get(kind, prediction_id) is not None

        strays = Strays(
            settings.temporary,
            outputs,
            held_for=settings.record_ttl,
            is_known=is_known,
            is_removed=records.is_removed,
            is_kept=records.is_kept,
        )
        leftovers = Leftovers(settings.temporary, strays)
        refused = Refused(redis, storage, settings.output_hosts, ttl=settings.record_ttl, clock=clock)

        def local() -> Counter[Repair]:
            return leftovers.run() + refused.run()

        tidy = _tidying(settings, redis, storage, clock)
    sweep = Sweep(redis, ttl=settings.record_ttl, clock=clock, users=users)
    ends = Ends(redis, storage)
    claims = StrayClaims(storage, records, held_for=settings.record_ttl, now=clock.time)
    epochs = Epochs(redis, storage, deployment.handlers, ttl=settings.record_ttl, clock=clock)

    def shared() -> Counter[Repair]:
        epochs.run()
        return sweep.run() + ends.run() + claims.run()

    return Sweeper(redis, clock=clock, shared=shared, local=local, tidy=tidy, catch_up=catch_up.run)


def _tidying(settings: Settings, redis: Redis, storage: Storage, clock: Clock) -> Part:
    """Ends removals that were cut off, and removes what is too old. Of its own, since storage may hang."""
    removal = Removal(redis, storage, ttl=settings.record_ttl, clock=clock)
    notes = RemovedNotes(storage, clock)
    quarantine = Quarantine(storage, disk_floor=settings.disk_floor, clock=clock)
    retention = None
    if settings.retention is not None:
        retention = Retention(redis, storage, removal, age=settings.retention, clock=clock)

    def tidy() -> Counter[Repair]:
        ended = removal.resume()
        for found in ended:
            facts = {"repair": Repair.REMOVAL_ENDED, "kind": found.kind, "id": found.id}
            log.warning("mended: %s", Repair.REMOVAL_ENDED, extra=facts)
        if not clock.is_far_off:
            quarantine.tidy()
            if retention is not None:
                retention.run()
        notes.tidy()
        return Counter({Repair.REMOVAL_ENDED: len(ended)})

    return tidy


class Sweeper:
    """A context: sweeps while it lasts.

    `shared` is what all processes mend together: it runs in the one whose turn it is, by a key in Redis.
    `local` is mended by this process for its host, `tidy` and `catch_up` look by themselves whose turn it is.
    All run `every` so many seconds.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        clock: Clock,
        shared: Part,
        local: Part | None = None,
        tidy: Part | None = None,
        catch_up: Callable[[], None] = lambda: None,
        every: float = EVERY,
    ) -> None:
        self._redis = redis
        self._clock = clock
        self._shared = shared
        self._local = local
        self._tidy = tidy
        self.catch_up = catch_up
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweep", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=2)  # it may be killed anywhere, so nobody waits for it

    def mend_here(self) -> None:
        """Run the local part once; raises what it raises."""
        if self._local:
            self._count(self._local())

    def mend_together(self) -> None:
        """Run the shared part once if it is our turn; raises what it raises."""
        # The turn is never given back: it expires, also when its owner is killed.
        milliseconds = int(self._every * 900)
        if self._redis.set(SWEEP_TURN, 1, nx=True, px=milliseconds):
            self._count(self._shared())
            self._redis.set(SWEPT, str(self._clock.time()))

    def tidy(self) -> None:
        """Run the part that removes what is to be removed; raises what it raises."""
        if self._tidy:
            self._count(self._tidy())

    def _count(self, mended: Counter[Repair]) -> None:
        for repair, count in mended.items():
            self._redis.hincrby(COUNTERS, series(REPAIRS, [repair]), count)

    def _run(self) -> None:
        failing: set[str] = set()
        while True:
            for part in (self.mend_here, self.mend_together, self.tidy, self.catch_up):
                try:
                    part()
                    failing.discard(part.__name__)
                except Exception as error:
                    if part.__name__ not in failing:
                        expected = isinstance(error, RedisError | OSError | OutkeepError)
                        log.warning("the sweep is put off: %s", error, exc_info=not expected)
                    failing.add(part.__name__)
            if self._ended.wait(self._every):
                break
        with suppress(RedisError):
            self._redis.close()
