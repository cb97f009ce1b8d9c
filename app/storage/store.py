"""The store of outputs and manifests, local or in a bucket; one that does not answer is left alone a while.

Each `Storage` notes that for itself. Nothing is refused for a store that answers, whatever it says.
"""

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from app.core import manifest as manifests
from app.core import outcomes
from app.core.bucket_faults import NO_ANSWER, Lack
from app.core.errors import Permanent, StorageFailure
from app.core.manifest import Manifest
from app.core.names import (
    ID,
    Kind,
    manifest_name,
    notification_id,
    object_name,
    outcome_name,
    split_outcome_name,
)
from app.core.outcomes import Told
from app.disk import lack_of_room
from app.storage.bucket import MISSING, Bucket
from app.storage.errors import Small, is_remote, translated
from app.storage.local_folder import LocalFolder
from app.storage.threads import Threads

SLOW = 3.0
"""Seconds after which a failure means that somebody waited in vain."""

PATIENCE = 3
"""How often in a row that happens before nobody waits any more."""

REST = 30.0
"""Seconds after which one asks again, for all the others."""


class Silence:
    """Whether a store is silent. Threads may share it."""

    def __init__(self, *, rest: float = REST, now: Callable[[], float] = time.monotonic) -> None:
        self._rest = rest
        self._now = now
        self._in_vain = 0
        self._ask_again = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Ask the store in this block; raises `StorageFailure` (`storage_silent`) when nobody should."""
        if not self._may_ask():
            message = f"the storage was silent a moment ago; it is asked again within {self._rest:.0f} s"
            raise StorageFailure("storage_silent", message)
        began = self._now()
        try:
            yield
        except StorageFailure as error:
            self._note(in_vain=error.code == NO_ANSWER and self._now() - began >= SLOW)
            raise
        self._note(in_vain=False)

    def _note(self, *, in_vain: bool) -> None:
        with self._lock:
            self._in_vain = self._in_vain + 1 if in_vain else 0
            self._ask_again = self._now() + self._rest

    def _may_ask(self) -> bool:
        with self._lock:
            if self._in_vain < PATIENCE:
                return True
            if self._now() < self._ask_again:
                return False
            self._ask_again = self._now() + self._rest
            return True


RETRY_AFTER = 10


@dataclass(frozen=True)
class Stored:
    """What the store says of an object; `size` in bytes."""

    size: int
    etag: str | None
    changed_at: datetime


T = TypeVar("T")

THREADS, FEW = 64, 3
"""Threads at most, and those that do all while the storage is quick."""

HANGS = 30.0
"""Seconds after which a call is taken to hang: one to a disk or a share that does not answer has no end."""


class Storage:
    """Objects under one URL. All methods block: call them with `run` from a coroutine.

    A write has reached the disk (`file://`), or is acknowledged by the store, when its method returns.
    Errors are `Transient`, also those that an operator must mend: they are tried again until then.
    """

    def __init__(self, url: str, silence: Silence | None = None) -> None:
        """Take `url`; nothing is read or written yet. Raises `Permanent` when a remote store refuses it."""
        self.url = url
        self._silence = silence or Silence()
        self._threads = Threads("storage", THREADS, few=FEW)
        self._hanging: set[str] = set()
        self._place: LocalFolder | Bucket = (
            Bucket(url) if is_remote(url) else LocalFolder(Path(unquote(urlsplit(url).path)))
        )

    async def run(self, work: Callable[[], T], *, about: str, seconds: float = HANGS) -> T:
        """Call `work`, which uses this storage, in one of its own threads, and give up when it hangs.

        Raises `StorageFailure` (`storage_silent`) then, and as long as another call `about` the same object
        hangs, or so many others that no thread is left. What hangs goes on by itself.
        """
        if about in self._hanging or len(self._hanging) >= THREADS:
            raise StorageFailure("storage_silent", f"the storage does not answer about {about}")
        running = self._threads.run(work)
        try:
            done, _ = await asyncio.wait([running], timeout=seconds)
        finally:
            if not running.done():
                self._hanging.add(about)
                running.add_done_callback(partial(self._came_back, about))
        if done:
            return running.result()
        raise StorageFailure("storage_silent", f"the storage gave no answer about {about} in {seconds:.0f} s")

    def _came_back(self, about: str, running: "asyncio.Future[T]") -> None:
        self._hanging.discard(about)
        if not running.cancelled():
            running.exception()  # taken, so that asyncio does not report it as forgotten

    @property
    def lacks(self) -> Collection[Lack]:
        """What the store was found not to do, and is done in another way."""
        return self._place.lacks if isinstance(self._place, Bucket) else ()

    def prove(self) -> None:
        """Try every call that we make, within some seconds for each; raises as `check_writable` does."""
        if isinstance(self._place, Bucket):
            self._place.prove()
        else:
            self._place.check()

    def check_writable(self) -> None:
        """Prove that it can be written, within seconds.

        Raises `Permanent` for what an operator must mend, `Transient` for an outage of a remote store.
        """
        self._place.check()

    @property
    def folder(self) -> Path | None:
        """The local folder; None for a remote store."""
        return self._place.root if isinstance(self._place, LocalFolder) else None

    def require_room(self, size: int, disk_floor: int | None) -> None:
        """Raise `StorageFailure` (`storage_full`) when the disk of a local folder has no room for deliveries.

        `size` is what is to be written, in bytes; `disk_floor` what downloads leave free.
        """
        if self.folder is None:
            return
        with translated(self.url, "room"):
            full = lack_of_room(self.folder, size, disk_floor)
        if full is not None:
            raise StorageFailure("storage_full", full, retry_after=RETRY_AFTER)

    def link(self, name: str) -> str | None:
        """A URL that the store itself serves for some minutes to whoever has it; None when it cannot."""
        return self._place.link(name)

    @contextmanager
    def _asked(self, name: str) -> Iterator[None]:
        """Ask about `name` in this block, with errors of ours."""
        with self._silence.heeded(), translated(self.url, name):
            yield

    def put_file(self, name: str, path: Path, *, encoding: str | None = None) -> None:
        """Store the file at `path` under `name`, overwriting: names and bytes are deterministic.

        `encoding` is the `Content-Encoding` that its bytes have; a bucket serves it with them.

        It is gone from `path` then: moved where that is the same disk, else copied. After an error it may be.
        """
        with self._asked(name):
            self._place.put_file(name, path, encoding)
            path.unlink(missing_ok=True)

    def put_bytes(self, name: str, data: bytes, *, encoding: str | None = None) -> None:
        """Store a small object under `name`, overwriting; `encoding` as `put_file` has it."""
        with self._asked(name):
            self._place.write([(name, data, encoding)])

    def note(self, name: str, data: bytes) -> None:
        """The same, for what may be torn or missing after a power cut: it takes one sync of the disk."""
        with self._asked(name):
            self._place.note(name, data)

    def settle(self, name: str) -> None:
        """Return when an object that somebody has stored has reached the disk."""
        with self._asked(name):
            self._place.settle(name)

    def create(self, name: str, data: bytes) -> bool:
        """Store a small object unless `name` exists; whether what stands there is ours."""
        with self._asked(name):
            return self._place.create(name, data)

    def get(self, name: str, *, most: int | None = None) -> bytes | None:
        """A small object whole; None when there is none. Raises `Large` for one of more than `most` bytes."""
        with self._asked(name):
            return self._place.get(name, most)

    def head(self, name: str) -> Stored | None:
        """What there is under `name`."""
        with self._asked(name):
            meta = self._place.head(name)
        return Stored(meta["size"], meta["e_tag"], meta["last_modified"]) if meta is not None else None

    def names(self, prefix: str) -> Iterator[str]:
        """All object names below a folder."""
        return (name for name, _ in self.listed(prefix))

    def listed(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """All object names below a folder, with the times of their latest change."""
        return ((name, stored.changed_at) for name, stored in self.objects(prefix))

    def objects(self, prefix: str) -> Iterator[tuple[str, Stored]]:
        """All objects below a folder; those of one folder come one after the other.

        What is reached through a link stays out: whoever removes what is listed must not reach other files.
        """
        with self._asked(prefix):
            if self._place.is_absent():
                return
            listed = self._place.listed(prefix)
            for folder, found in groupby(listed, key=lambda meta: meta["path"].rpartition("/")[0]):
                if not self._place.is_linked(folder):
                    for meta in found:
                        yield meta["path"], Stored(meta["size"], meta["e_tag"], meta["last_modified"])

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects; one that is gone already does not matter."""
        if names:
            with self._asked(names[0]):
                self._place.remove(names)

    def remove_folder(self, prefix: str) -> None:
        """Remove a folder whose objects are gone, with what killed writes left in it and no list shows."""
        with self._asked(prefix):
            self._place.remove_folder(prefix)

    def digest(self, name: str) -> tuple[int, str] | None:
        """Size and SHA-256 (hex) of what is stored, read whole in pieces; None when there is nothing."""
        size, digest = 0, hashlib.sha256()
        with self._asked(name):
            try:
                for piece in self._place.read(name):
                    size += len(piece)
                    digest.update(piece)
            except MISSING:
                return None
        return size, digest.hexdigest()

    async def stream(
        self, name: str, start: int, end: int, *, size: int | None = None
    ) -> AsyncIterator[bytes]:
        """Bytes `start` up to but without `end`; for large objects, in pieces.

        Whoever wants all of an object gives its `size`, and it is asked for as a whole. Raises
        `StorageFailure`, also when there are fewer bytes.
        """
        missing = end - start
        with self._asked(name):
            async for piece in self._place.stream(name, start, end, size=size):
                missing -= len(piece)
                yield piece
        if missing:
            raise StorageFailure("storage_unavailable", f"{name} ends {missing} bytes early in the storage")

    def read_manifest(self, kind: Kind, prediction_id: str, *, most: int | None = None) -> Manifest | None:
        """The manifest of a prediction; None when nothing is committed.

        That of another one, which somebody has copied here, is of no use: what it tells of lies elsewhere.
        Raises as `manifests.read` does, too, and `Large` for one of more than `most` bytes.
        """
        data = self.get(manifest_name(kind, prediction_id), most=most)
        manifest = manifests.read(data) if data is not None else None
        if manifest is not None:
            manifests.require_place(manifest, kind, prediction_id)
        return manifest

    def encodings(self, place: str) -> Mapping[str, str]:
        """The `Content-Encoding` of each stored file that has one; the manifest lies at `place`."""
        data = self.get(place) or b""
        try:
            manifest = manifests.read(data) if b'"encoding"' in data else None
        except Permanent:  # the bytes of files are of use all the same
            return {}
        files = manifest.kept if manifest else ()
        return {file.name: file.encoding for file in files if file.name and file.encoding}

    def create_manifest(self, manifest: Manifest, beside: Sequence[Small] = ()) -> bool:
        """Store small objects, then the manifest unless there is one; whether it was stored.

        In a local folder all of it takes one sync of that folder.
        """
        name = manifest_name(manifest.prediction.kind, manifest.prediction.id)
        with self._asked(name):
            return self._place.write(beside, (name, manifest.to_json()))

    def commit(self, manifest: Manifest) -> Manifest:
        """Write the manifest unless a better one stands there; give back the one that counts."""
        if self.create_manifest(manifest):
            return manifest
        place = (manifest.prediction.kind, manifest.prediction.id)
        present = self.read_manifest(*place)
        if present is not None and not manifest.replaces(present):
            return present
        self.put_bytes(manifest_name(*place), manifest.to_json())
        return manifest

    def outcome(self, handler: str, kind: Kind, prediction_id: str) -> Told | None:
        """How the delivery to a handler ended; None when it has not, or the file is torn."""
        data = self.get(object_name(kind, prediction_id, outcome_name(handler)))
        return None if data is None else outcomes.read(data)

    def note_outcome(self, handler: str, kind: Kind, prediction_id: str, told: Told) -> dict[str, Any]:
        """Say how it ended, and give back what was written."""
        document = outcomes.document(notification_id(handler, kind, prediction_id), told)
        self.note(object_name(kind, prediction_id, outcome_name(handler)), json.dumps(document).encode())
        return document


_PARTS = 3


@dataclass(frozen=True)
class Folder:
    """The objects of one prediction or training by their full names."""

    kind: Kind
    id: str
    objects: Mapping[str, Stored]

    @property
    def place(self) -> tuple[Kind, str]:
        """What tells it from all others."""
        return self.kind, self.id

    @property
    def manifest(self) -> Stored | None:
        """What the listing says of the manifest; None before anything is committed."""
        return self.objects.get(manifest_name(*self.place))

    @property
    def outcomes(self) -> Mapping[str, str]:
        """Handler → name of the object that says how its delivery ended."""
        found = {split_outcome_name(name.rpartition("/")[2]): name for name in self.objects}
        return {handler: name for handler, name in found.items() if handler is not None}


def folders(storage: Storage, kind: Kind) -> Iterator[Folder]:
    """Everything of one kind, in the order of the store; raises `Transient`."""
    # A prefix is a range of every ordered listing, and a local folder is walked whole.
    for folder, found in groupby(storage.objects(kind.folder), key=lambda one: one[0].rpartition("/")[0]):
        parts = folder.split("/")
        if len(parts) == _PARTS - 1 and ID.fullmatch(parts[1]):
            yield Folder(kind, parts[1], dict(found))
