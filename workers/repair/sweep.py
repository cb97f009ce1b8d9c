"""The sweep: a thread that looks for inconsistencies once a minute and repairs them."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from app.accept.quarantine import Quarantine
from app.accept.records import Records
from app.clock import Clock
from app.core.errors import OutkeepError
from app.core.lifecycle import Repair
from app.core.names import COUNTERS, PERSIST_QUEUE, REPAIRED, SWEEP_TURN, SWEPT
from app.core.vocabulary import REPAIRS
from app.deployment import Deployment
from app.health.presence import process_of
from app.maintain.removal import Removal, RemovedNotes
from app.maintain.user_jobs import tell_ends
from app.storage.store import Storage
from app.telemetry.tally import series
from app.valkey.client import connect
from workers.repair.files import LocalFiles, OrphanedBodies
from workers.repair.inconsistencies import Consistency, RefusedOutputs
from workers.repair.recovery import CatchUp, Epochs
from workers.repair.retention import Retention

log = logging.getLogger("outkeep.sweep")

EVERY = 60.0
"""Seconds between sweeps."""

TIMEOUT = 5.0
"""Seconds after which a silent Redis is an error."""

Part = Callable[[], Counter[Repair]]
"""Repairs something and tells how often which repair was made."""


def sweeper_of(queue: str, deployment: Deployment, users: Sequence[str]) -> "Sweeper":
    """The sweeper of the worker process of a queue; the processes that download also look after files.

    `users` are the queues that hold jobs of the user's.
    """
    settings, clock = deployment.settings, deployment.clock
    redis, ttl = connect(deployment.redis_url, timeout=TIMEOUT), settings.record_ttl
    storage, records = Storage(settings.storage_url), Records(redis, ttl=ttl)
    consistency = Consistency(redis, ttl=ttl, clock=clock, users=users)
    bodies = OrphanedBodies(storage, records, held_for=ttl, now=clock.time)
    epochs = Epochs(redis, storage, deployment.handlers, ttl=ttl, clock=clock)
    own = process_of(deployment, queue)
    catch_up = CatchUp(redis, storage, own, deployment.handlers, ttl=ttl, clock=clock)
    local: Part | None = None
    tidy = None
    if queue == PERSIST_QUEUE:
        files = LocalFiles(settings.temporary, storage.folder, records, held_for=ttl)
        refused = RefusedOutputs(consistency, records, storage, settings.output_hosts, clock=clock)

        def local() -> Counter[Repair]:
            return files.run() + refused.run()

        tidy = _tidying(deployment, redis, storage)

    def shared() -> Counter[Repair]:
        epochs.run()
        repaired = consistency.run()
        tell_ends(redis, storage)
        return repaired + bodies.run()

    return Sweeper(redis, clock=clock, shared=shared, local=local, tidy=tidy, catch_up=catch_up.run)


def _tidying(deployment: Deployment, redis: Redis, storage: Storage) -> Part:
    """Ends removals that were cut off, and removes what is too old. A part of its own: storage may hang."""
    settings, clock = deployment.settings, deployment.clock
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
            log.warning("repaired: %s", Repair.REMOVAL_ENDED, extra=facts)
        if not clock.is_far_off:
            quarantine.tidy()
            if retention is not None:
                retention.run()
        notes.tidy()
        return Counter({Repair.REMOVAL_ENDED: len(ended)})

    return tidy


class Sweeper:
    """A context: sweeps while it lasts.

    One process at a time runs `shared`, by a lease in Redis. Each runs `local` for its own host; `tidy` and
    `catch_up` have leases of their own. All run `every` so many seconds.
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

    def repair_here(self) -> None:
        """Run the local part once; raises what it raises."""
        if self._local:
            self._count(self._local())

    def repair_together(self) -> None:
        """Run the shared part once if the lease is free; raises what it raises."""
        # The lease is never given back: it expires, also when its owner is killed.
        if self._redis.lock(SWEEP_TURN, timeout=self._every * 0.9).acquire(blocking=False):
            self._count(self._shared())
            self._redis.set(SWEPT, str(self._clock.time()))

    def tidy(self) -> None:
        """Run the part that removes what is to be removed; raises what it raises."""
        if self._tidy:
            self._count(self._tidy())

    def _count(self, repaired: Counter[Repair]) -> None:
        at = self._clock.time()
        for repair, count in repaired.items():
            if count:
                self._redis.hincrby(COUNTERS, series(REPAIRS, [repair]), count)
                self._redis.hset(REPAIRED, repair, f"{count} {at:.0f}")

    def _run(self) -> None:
        failing: set[str] = set()
        while True:
            for part in (self.repair_here, self.repair_together, self.tidy, self.catch_up):
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
