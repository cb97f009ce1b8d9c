"""Which storage this is and whether Redis still holds what it held: `outkeep.json`, and its copy in Redis.

Both name the same storage, or a process does not start. The epoch grows in Redis every minute, and in the
storage after it: a Redis that names an older one, or none, has come back without what it had. Keys and
objects of 0.1 name neither; then nothing is known to be lost, and both are written.

Methods block. They raise redis-py's errors and the storage's `Transient`.
"""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from redis import Redis
from redis.exceptions import LockError

from app.core.errors import ConfigurationError, Transient
from app.core.findings import Finding, Level
from app.core.manifest import format_time
from app.core.names import EPOCH, IDENTITY_LOCK, IDENTITY_NAME, REBUILD_TURN, STORAGE_ID
from app.core.prediction import parse_time
from app.storage.store import Storage

LOCK = 15.0
"""Seconds after which the lock of a killed process expires, and that others wait for it."""

REMOTE_EVERY = 10
"""Epochs between two writes of `outkeep.json` to a remote store, each of which somebody pays for."""


@dataclass(frozen=True)
class Document:
    """`outkeep.json`. `exists` is true of one that is torn, too; what is not told or unusable is None."""

    exists: bool
    fields: Mapping[str, Any]

    @property
    def id(self) -> str | None:
        """Of the storage."""
        found = self.fields.get("id")
        return found if isinstance(found, str) and found else None

    @property
    def epoch(self) -> int | None:
        """The latest that Redis is known to have had."""
        found = self.fields.get("epoch")
        return found if isinstance(found, int) and not isinstance(found, bool) else None

    @property
    def first_start(self) -> datetime | None:
        """When Outkeep first ran with this storage."""
        with suppress(ValueError, AttributeError, TypeError):
            return parse_time(self.fields.get("first_start"))
        return None

    @property
    def handlers(self) -> dict[str, datetime | None]:
        """Since when each handler is in the handlers file; None: as long as anything is known."""
        found = self.fields.get("handlers")
        times: dict[str, datetime | None] = {}
        for name, since in found.items() if isinstance(found, dict) else ():
            times[name] = None
            with suppress(ValueError, AttributeError, TypeError):
                times[name] = parse_time(since)
        return times


def read(storage: Storage) -> Document:
    """What `outkeep.json` says now."""
    data = storage.get(IDENTITY_NAME)
    try:
        fields = json.loads(data or b"{}")
    except ValueError:
        fields = {}  # torn by a power cut
    return Document(data is not None, fields if isinstance(fields, dict) else {})


@dataclass
class Identity:
    """Of one storage beside one Redis, as one process knows it."""

    redis: Redis
    storage: Storage
    highest: int = 0
    """The latest epoch that was seen."""
    _document: Document = field(default_factory=lambda: Document(exists=False, fields={}))

    def settle(self, handlers: Sequence[str], alive: Sequence[str], now: datetime) -> str:
        """Compare both, and write what is missing; the id of the storage.

        `handlers` are the names in our handlers file, `alive` those that any other process knows. Raises
        `ConfigurationError` when Redis belongs to another storage.
        """
        with self._locked():
            if (problem := self.trouble()) is not None:
                raise ConfigurationError([problem])
            document = self._document
            identity = document.id or self._known() or secrets.token_hex(8)
            times = _since(document, handlers, alive, now)
            if document.id is None or times != document.fields.get("handlers"):
                document = self._write(document, id=identity, handlers=times)
            self.redis.set(STORAGE_ID, identity, nx=True)
            if document.epoch is None:
                self.redis.set(EPOCH, 1, nx=True)
        self._document = document
        return identity

    def trouble(self) -> str | None:
        """Why a process with this storage would not start; writes nothing."""
        document, known = self.look(), self._known()
        is_torn = document.exists and not document.fields
        if known in (None, document.id) or is_torn:
            return None
        return differs(self.storage, document)

    def adopt(self) -> tuple[str | None, str]:
        """Let Redis belong to this storage from now on; the id of the one before, and its own."""
        with self._locked():
            document, known = read(self.storage), self._known()
            identity = document.id or secrets.token_hex(8)
            if document.id is None:
                self._write(document, id=identity)
            self.redis.set(STORAGE_ID, identity)
        return known, identity

    def note_first_start(self, first: datetime) -> datetime:
        """Write when Outkeep first ran, unless that is known; the earlier of both."""
        with self._locked():
            document = read(self.storage)
            written = document.first_start
            if written is None:
                self._write(document, first_start=format_time(first))
        return first if written is None else min(written, first)

    def is_lost(self) -> bool:
        """Whether Redis has lost what it held; asks Redis only."""
        current = self._epoch()
        if current is not None and current >= self.highest:
            self.highest = current
            return False
        return self.highest > 0

    def look(self) -> Document:
        """Learn from the storage what Redis must hold."""
        self._document = read(self.storage)
        self.highest = max(self.highest, self._document.epoch or 0)
        return self._document

    def advance(self) -> None:
        """Let the epoch grow. Only where nothing is lost."""
        current = int(self.redis.incr(EPOCH))
        self.highest = max(self.highest, current)
        written = self._document.epoch
        every = 1 if self.storage.folder is not None else REMOTE_EVERY
        if written is None or current - written >= every:
            self._note(current)

    def renew(self) -> None:
        """Say that Redis holds again what it must: after a rebuild."""
        document = self.look()
        current = max(self.highest, self._epoch() or 0) + 1
        if document.id is not None:
            self.redis.set(STORAGE_ID, document.id, nx=True)
        self.redis.set(EPOCH, current)
        self.highest = current
        self._note(current)

    def _note(self, epoch: int) -> None:
        with self._locked():
            document = read(self.storage)
            if document.id is not None and (document.epoch or 0) < epoch:
                document = self._write(document, epoch=epoch)
            self._document = document

    def _write(self, document: Document, **fields: Any) -> Document:
        changed = Document(exists=True, fields={**document.fields, **fields})
        self.storage.put_bytes(IDENTITY_NAME, json.dumps(changed.fields).encode())
        return changed

    def _known(self) -> str | None:
        known = cast(bytes | None, self.redis.get(STORAGE_ID))
        return known.decode(errors="replace") if known else None

    def _epoch(self) -> int | None:
        current = cast(bytes | None, self.redis.get(EPOCH))
        return int(current) if current is not None and current.isdigit() else None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = self.redis.lock(IDENTITY_LOCK, timeout=LOCK, blocking_timeout=LOCK, thread_local=False)
        if not lock.acquire():
            raise Transient("identity_locked", f"another process writes {IDENTITY_NAME}; try again")
        try:
            yield
        finally:
            with suppress(LockError):  # it took too long, and somebody else has it
                lock.release()


def require(redis: Redis, storage: Storage) -> Identity:
    """Raise `ConfigurationError` where Redis belongs to another storage; writes nothing."""
    identity = Identity(redis, storage)
    if (problem := identity.trouble()) is not None:
        raise ConfigurationError([problem])
    return identity


def differs(storage: Storage, document: Document) -> str:
    """Why a process with this storage does not start."""
    missing = "an id" if document.exists else "outkeep.json"
    holds = "has another id" if document.id else f"lacks {missing}"
    return (
        f"OUTKEEP_STORAGE: {storage.url} {holds} and is not the storage of this Redis; set it as on the "
        "other hosts, or, if you mean to go on with it, run `outkeep storage adopt`"
    )


def lost(identity: Identity) -> list[Finding]:
    """Complain if Redis has lost data; raises redis-py's errors."""
    if not identity.is_lost():
        return []
    if identity.redis.exists(REBUILD_TURN):
        detail = "it has come back without data that it held; it is being rebuilt from the storage"
    else:
        detail = (
            "it has come back without data that it held; a persist or notify worker rebuilds it from the "
            "storage within a minute, or run `outkeep rebuild`"
        )
    return [Finding(Level.FAIL, "redis data", detail)]


def _since(
    document: Document, handlers: Sequence[str], alive: Sequence[str], now: datetime
) -> dict[str, str | None]:
    """`handlers` of the document with ours in it, and without those that nobody knows any more."""
    known = document.fields.get("handlers")
    if not isinstance(known, dict):
        return dict.fromkeys(handlers)
    kept = {name: since for name, since in known.items() if name in handlers or name in alive}
    return kept | {name: format_time(now) for name in handlers if name not in kept}
