"""When the sweep runs: every minute, in a thread of the asynchronous workers, in one process at a time."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from app.accept.inbox import connect
from app.accept.quarantine import Quarantine
from app.accept.records import Records
from app.clock import Clock
from app.core.errors import OutkeepError
from app.core.names import COUNTERS, PERSIST_QUEUE, SWEEP_TURN, SWEPT, Kind
from app.core.repairs import Repair
from app.core.vocabulary import REPAIRS
from app.deployment import Deployment
from app.health.presence import process_of
from app.maintain.removal import Removal
from app.maintain.removed_notes import RemovedNotes
from app.maintain.strays import Strays
from app.settings import Settings
from app.storage.store import Storage
from app.telemetry.tally import series
from workers.repair.catch_up import CatchUp
from workers.repair.ends import Ends
from workers.repair.epochs import Epochs
from workers.repair.leftovers import Leftovers
from workers.repair.refused import Refused
from workers.repair.retention import Retention
from workers.repair.stray_claims import StrayClaims
from workers.repair.sweep import Sweep

EVERY = 60.0
"""Seconds between sweeps."""

TIMEOUT = 5.0
"""Seconds after which a silent Redis is an error."""

Part = Callable[[], Counter[Repair]]
"""Mends something and tells how often which repair was made."""

log = logging.getLogger("outkeep.sweep")


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
