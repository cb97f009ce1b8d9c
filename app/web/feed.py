"""What keeps the catalog up: a thread that follows the stream of changes, and builds anew where it must.

Open event streams hear of a change from here, once the catalog shows it. Everything is done in small pieces:
the receiver shares this interpreter.
"""

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import IO, cast

from redis import Redis
from redis.exceptions import RedisError

from app.accept import changes
from app.accept.changes import Change, Notified
from app.accept.records import Record, Records
from app.core import manifest as manifests
from app.core import outcomes
from app.core.errors import OutkeepError, Permanent
from app.core.handlers import Handler
from app.core.lifecycle import State
from app.core.names import Kind, manifest_name, record_key
from app.core.outcomes import Told
from app.storage.store import Folder, Storage, folders
from app.web.catalog import Catalog
from app.web.entries import Entry, of_large_manifest, of_manifest, of_record

GATHER = 0.1
"""Seconds in which the changes of one prediction gather, so that they are written once."""

AT_ONCE = 200
"""Changes that are written in one transaction."""

FOLDERS = 20
"""Of a rebuild, whose records are read in one round trip."""

SLICE = 0.01
"""Seconds of work of a rebuild, after which deliveries get as long for themselves."""

PATIENCE = 1.0
REST = 2.0
"""Seconds to wait for a change, and before another try after a failure."""

TIDY = 60.0
"""Seconds between two looks for rows of what has expired."""

LARGE = 2 << 20
"""Bytes of a manifest that is not parsed: the loop of the receiver would stand still meanwhile."""

log = logging.getLogger("outkeep.catalog")

_Ref = tuple[Kind, str]
_COMING = frozenset({State.RUNNING, State.RECEIVED})


class Feed:
    """Follows the stream over a Redis connection of its own, until `stop`."""

    def __init__(
        self,
        catalog: Catalog,
        redis: Redis,
        storage: Storage,
        handlers: Sequence[Handler],
        *,
        ttl: int,
        clock: Callable[[], datetime],
    ) -> None:
        """`ttl` is how long (s) a record lives; `redis` needs a time-out longer than `PATIENCE`."""
        self._catalog = catalog
        self._redis = redis
        self._storage = storage
        self._handlers = handlers
        self._records = Records(redis, ttl=ttl)
        self._ttl = ttl
        self._clock = clock
        self._ending = threading.Event()
        self._listeners: list[Callable[[Sequence[Change]], None]] = []
        self._thread = threading.Thread(target=self._run, name="catalog", daemon=True)
        self._building: Iterator[Folder] | None = None
        self._round = 0
        self._read = 0
        self._tidied = 0.0

    def start(self) -> None:
        """Make the catalog if there is none, and begin in a thread."""
        with (
            suppress(sqlite3.Error, OSError),
            _Lock(self._catalog.path.with_suffix(".lock")) as lock,
        ):  # said there
            if lock.is_ours:
                self._catalog.open().close()
        self._thread.start()

    def stop(self) -> None:
        """Wait for the piece of work that it is at, and close what it uses."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(10.0)
        self._redis.close()

    def listen(self, listener: Callable[[Sequence[Change]], None]) -> None:
        """Have `listener` called in the thread of the feed with changes, once the catalog shows them."""
        self._listeners.append(listener)

    def _run(self) -> None:
        said = ""
        while not self._ending.is_set():
            try:
                self._follow()
            except (RedisError, OutkeepError, sqlite3.Error, OSError) as error:
                reason = error.message if isinstance(error, OutkeepError) else type(error).__name__
                if reason != said:
                    log.warning("the catalog waits, lists show what it knows: %s", reason)
                said = reason
                self._ending.wait(REST)
            else:
                said = ""

    def _follow(self) -> None:
        """Work until something fails or we end; goes on where the catalog stands."""
        with _Lock(self._catalog.path.with_suffix(".lock")) as lock:
            if not lock.is_ours:
                self._listen_only(lock)
            else:
                with closing(self._catalog.open()) as connection:
                    self._write(connection)

    def _listen_only(self, lock: "_Lock") -> None:
        """Another process writes: tell of changes, until that one is gone."""
        position = changes.newest(self._redis)
        while not self._ending.is_set() and not lock.take():
            news = changes.after(self._redis, position, count=AT_ONCE, block=int(PATIENCE * 1000))
            if news:
                position = news[-1].position
                self._ending.wait(2 * GATHER)  # the catalog is about to show it
                self._tell(news)

    def _write(self, connection: sqlite3.Connection) -> None:
        position = self._position(connection)
        while not self._ending.is_set():
            waits = int(PATIENCE * 1000) if self._building is None else None
            if changes.after(self._redis, position, count=1, block=waits):
                if self._building is None:
                    self._ending.wait(GATHER)
                news = changes.after(self._redis, position, count=AT_ONCE)
                if not news:
                    continue
                position = news[-1].position
                self._apply(connection, news, position)
                self._tell(news)
            if self._building is not None:
                self._build(connection)
            elif time.monotonic() - self._tidied > TIDY:
                self._tidy(connection)

    def _position(self, connection: sqlite3.Connection) -> str:
        """From where on to follow; begins to build anew where something was missed."""
        self._round = int(self._catalog.fact(connection, "round") or 0)
        position = self._catalog.fact(connection, "position")
        is_half_built = self._catalog.fact(connection, "building") is not None
        if position is None or is_half_built or not changes.is_whole(self._redis, position):
            position = changes.newest(self._redis)
            self._begin_building(connection, position)
        return position

    def _begin_building(self, connection: sqlite3.Connection, position: str) -> None:
        self._round += 1
        self._read = 0
        self._building = (folder for kind in Kind for folder in folders(self._storage, kind))
        for name, value in (("round", self._round), ("building", 0), ("position", position)):
            self._catalog.note(connection, name, value)
        for record in self._records.newest():
            if self._ending.is_set():
                return
            if record.state not in {State.STORED, State.DISPATCHED}:
                self._catalog.put(connection, of_record(record), self._round)
        log.info("the catalog is built from the storage")

    def _build(self, connection: sqlite3.Connection) -> None:
        """Read some more folders, then let deliveries have their turn."""
        assert self._building is not None
        began = time.monotonic()
        connection.execute("BEGIN IMMEDIATE")
        try:
            while time.monotonic() - began < SLICE:
                some = list(islice(self._building, FOLDERS))
                if not some:
                    self._end_building(connection)
                    break
                self._read += len(some)
                self._take(connection, {one.place: one for one in some if one.manifest is not None})
            else:
                self._catalog.note(connection, "building", self._read)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            self._building = None
            raise
        self._ending.wait(time.monotonic() - began)

    def _end_building(self, connection: sqlite3.Connection) -> None:
        gone = connection.execute(
            "SELECT kind, id FROM entries WHERE round < ? AND stored_at IS NOT NULL", (self._round,)
        ).fetchall()
        self._catalog.drop(connection, [(Kind(kind), identity) for kind, identity in gone])
        connection.execute("DELETE FROM facts WHERE name = 'building'")
        self._building = None
        log.info("the catalog is built", extra={"count": self._read})

    def _apply(self, connection: sqlite3.Connection, news: Sequence[Change], position: str) -> None:
        """Write what has changed. What cannot be read now is read by the next rebuild."""
        moved: dict[_Ref, str] = {}
        told: dict[_Ref, list[Notified]] = defaultdict(list)
        for change in news:
            if change.kind is None or change.id is None:
                self._begin_building(connection, position)
            elif change.notified is not None:
                told[change.kind, change.id].append(change.notified)
            else:
                moved[change.kind, change.id] = change.what
        removed = [ref for ref, what in moved.items() if what == changes.REMOVED]
        connection.execute("BEGIN IMMEDIATE")
        try:
            dropped = self._catalog.drop(connection, removed)
            self._take(connection, dict.fromkeys(moved.keys() - set(removed)))
            for ref, attempts in told.items():
                self._catalog.tell(connection, ref, attempts)
            self._catalog.note(connection, "position", position)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        if dropped:
            self._catalog.forget(connection)

    def _take(self, connection: sqlite3.Connection, found: Mapping[_Ref, Folder | None]) -> None:
        """Write the rows of some predictions as storage and Redis know them now."""
        for ref, record in zip(found, self._records.look(list(found)), strict=True):
            entry = self._entry(ref, record, found[ref])
            if entry is not None:
                self._catalog.put(connection, entry, self._round)
            elif found[ref] is None:
                self._catalog.drop(connection, [ref])

    def _entry(self, ref: _Ref, record: Record | None, folder: Folder | None) -> Entry | None:
        """What is known of a prediction; None: nothing."""
        if record is not None and record.state in _COMING:
            return of_record(record)
        data = self._storage.get(manifest_name(*ref))
        told = self._outcomes(ref, record, folder)
        try:
            if data is not None and len(data) > LARGE:
                return of_large_manifest(data, *ref, record)
            manifest = manifests.read(data) if data is not None else None
            if manifest is not None:
                return of_manifest(manifest, told, self._handlers, record.state if record else None)
        except (Permanent, ValueError, TypeError, KeyError):
            return None  # what cannot be read cannot be shown; `outkeep rebuild` says why
        return of_record(record) if record is not None else None

    def _outcomes(self, ref: _Ref, record: Record | None, folder: Folder | None) -> dict[str, Told]:
        """How deliveries have ended, as far as the stream of changes does not tell it.

        Without a listing those handlers are asked for that are known.
        """
        if folder is None and record is not None and not record.receipt.quiet:
            return {}
        if folder is not None:
            read = {
                handler: outcomes.read(self._storage.get(name) or b"")
                for handler, name in folder.outcomes.items()
            }
        else:
            read = {one.name: self._storage.outcome(one.name, *ref) for one in self._handlers}
        return {handler: told for handler, told in read.items() if told is not None}

    def _tidy(self, connection: sqlite3.Connection) -> None:
        """Drop rows of what never was stored, and whose record has expired."""
        self._tidied = time.monotonic()
        limit = round((self._clock().timestamp() - self._ttl) * 1000)
        rows = connection.execute(
            "SELECT kind, id FROM entries WHERE stored_at IS NULL AND updated_at < ? LIMIT 500", (limit,)
        ).fetchall()
        refs = [(Kind(kind), identity) for kind, identity in rows]
        with self._redis.pipeline(transaction=False) as pipeline:
            for ref in refs:
                pipeline.exists(record_key(*ref))
            known = cast(list[int], pipeline.execute())
        gone = [ref for ref, exists in zip(refs, known, strict=True) if not exists]
        if self._catalog.drop(connection, gone):
            self._catalog.forget(connection)

    def _tell(self, news: Sequence[Change]) -> None:
        for listener in self._listeners:
            listener(news)


class _Lock:
    """Whoever has it writes the catalog of this host; a killed process loses it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self.is_ours = False

    def __enter__(self) -> "_Lock":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.fdopen(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600), "rb")
        self.take()
        return self

    def take(self) -> bool:
        """Whether it is ours now."""
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.is_ours = True
        return True

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()
