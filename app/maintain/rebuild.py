"""Restore records, the index, owed notifications and dead letters from storage alone."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, islice
from types import MappingProxyType
from typing import TypeVar

from redis import Redis

from app.core import outcomes
from app.core.errors import OutkeepError
from app.core.handlers import Handler, interested
from app.core.manifest import Manifest
from app.core.names import Kind, manifest_name, object_name, outcome_name
from app.core.outcomes import Told
from app.maintain.backlog import Place, backlog, by_place, telling_queues
from app.maintain.restoration import Restoration, Wanted, listed_until
from app.storage.folders import Folder, folders
from app.storage.store import Storage

READERS = 16
"""Objects that are read at the same time: a store far away answers many for the price of one."""

BATCH = 200
"""Predictions that go to Redis in one round trip."""

T = TypeVar("T")


@dataclass(frozen=True)
class Rebuilt:
    """What became of one folder in storage. `fault` says why its manifest could not be used."""

    kind: Kind
    id: str
    record: bool = False
    """Whether it has a record again that it did not have."""
    expired: bool = False
    """Whether its record would have expired by now."""
    jobs: int = 0
    dead_letters: int = 0
    committed: bool = True
    """False when there is no manifest: it is on its way, or what it waited for is gone."""
    fault: str | None = None


@dataclass(frozen=True)
class _Read:
    folder: Folder
    manifest: Manifest | None
    told: Mapping[str, Told | None] = field(default_factory=dict)
    fault: str | None = None


class Rebuild:
    """One pass over storage. It may be killed anywhere, run again, and run beside live traffic."""

    def __init__(
        self,
        redis: Redis,
        storage: Storage,
        handlers: Sequence[Handler],
        *,
        ttl: int,
        everything: bool,
        clock: Callable[[], datetime],
    ) -> None:
        """Records live `ttl` seconds since they were stored; with `everything` since now, however old."""
        self._redis = redis
        self._storage = storage
        self._handlers = handlers
        self._ttl = ttl
        self._everything = everything
        self._clock = clock
        self._restoration = Restoration(redis)
        self._busy: set[Place] = set()
        self._added: Mapping[str, datetime | None] = {}

    def run(
        self,
        found: Iterable[Folder] | None = None,
        *,
        oldest: datetime | None = None,
        added: Mapping[str, datetime | None] = MappingProxyType({}),
    ) -> Iterator[Rebuilt]:
        """Rebuild, folder by folder; raises `Transient` when storage is away, and redis-py's errors.

        `found` are the folders, instead of all. What was committed before `oldest` is left alone, and a
        handler is told of nothing that was stored before it was `added`.
        """
        self._added = added
        for queue in telling_queues(self._redis):
            jobs = backlog(queue, self._redis)
            listed = [*jobs.queued, *jobs.running, *jobs.scheduled, *jobs.failed]
            self._busy |= {place for place, _ in by_place(listed)}
        if found is None:
            found = chain.from_iterable(folders(self._storage, kind) for kind in Kind)
        if oldest is not None:
            found = (one for one in found if one.manifest is None or one.manifest.changed_at >= oldest)
        with ThreadPoolExecutor(READERS, thread_name_prefix="rebuild") as readers:
            for batch in _batches(found, BATCH):
                yield from self._restore(list(readers.map(self._read, batch)))

    def _read(self, folder: Folder) -> _Read:
        if folder.manifest is None:
            return _Read(folder, None)
        try:
            manifest = self._storage.read_manifest(*folder.place)
            fault = None if manifest else "it is torn, as after a power cut"
            told = {handler: self._told(name) for handler, name in folder.outcomes.items()}
            for handler in interested(self._handlers, manifest.prediction) if manifest else ():
                if handler.name not in told:  # perhaps since the listing
                    told[handler.name] = self._told(object_name(*folder.place, outcome_name(handler.name)))
        except OutkeepError as error:
            return _Read(folder, None, {}, error.message)
        return _Read(folder, manifest, told, fault)

    def _told(self, name: str) -> Told | None:
        data = self._storage.get(name)
        return None if data is None else outcomes.read(data)

    def _restore(self, batch: Sequence[_Read]) -> Iterator[Rebuilt]:
        wanted = [self._wanted(one.manifest, one.told) for one in batch if one.manifest]
        made = iter(zip(wanted, self._restoration.restore(wanted), strict=True))
        for one in batch:
            place = one.folder.place
            if one.manifest is None:
                yield Rebuilt(*place, committed=one.folder.manifest is not None, fault=one.fault)
            else:
                asked, done = next(made)
                yield Rebuilt(*place, done.record, asked.ttl == 0, done.jobs, done.dead_letters)

    def _wanted(self, manifest: Manifest, told: Mapping[str, Told | None]) -> Wanted:
        prediction, now = manifest.prediction, self._clock()
        # What stands in RQ's lists knows its own end; its id may be that of a replay.
        idle = {name for name in told if (name, prediction.kind, prediction.id) not in self._busy}
        dead = {
            name: one
            for name, one in told.items()
            if name in idle and one is not None and one.is_dead_letter and listed_until(one) > now
        }
        untold = [
            handler
            for handler in interested(self._handlers, prediction)
            if handler.name in idle and told[handler.name] is None and self._is_owed(handler, manifest)
        ]
        return Wanted(manifest, self._seconds_left(manifest, now), untold, dead)

    def _is_owed(self, handler: Handler, manifest: Manifest) -> bool:
        added = self._added.get(handler.name)
        return added is None or manifest.stored_at >= added

    def _seconds_left(self, manifest: Manifest, now: datetime) -> int:
        if self._everything:
            return self._ttl
        return max(int(manifest.stored_at.timestamp() + self._ttl - now.timestamp()), 0)


def object_of(rebuilt: Rebuilt) -> str:
    """The manifest that a line is about."""
    return manifest_name(rebuilt.kind, rebuilt.id)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
