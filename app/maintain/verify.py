"""Reads stored files again, and compares them with what their manifests say."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from app.core.errors import OutkeepError, Removed
from app.core.manifest import KeptFile, Manifest
from app.core.names import Kind, PredictionRef, manifest_name, object_name
from app.storage.store import Storage, folders

AT_ONCE = 16
"""Files that are read at the same time."""

AHEAD = 64
"""Predictions that are begun before the first of them has ended: what bounds the memory."""

CLOCKS_DIFFER = timedelta(hours=1)
"""How much earlier than `stored_at` a store may say that a manifest was written."""


@dataclass(frozen=True)
class Odd:
    """An object that is not as it should be: `missing`, `differs` or `unreadable`, and how."""

    problem: str
    kind: Kind
    id: str
    object: str
    detail: str


@dataclass(frozen=True)
class Verified:
    """One prediction or training; `size` in bytes, of the files that were read."""

    files: int
    size: int
    odd: tuple[Odd, ...] = ()


def everything(storage: Storage, since: datetime | None) -> Iterator[PredictionRef]:
    """All that has a manifest, by the listing, or what may have been stored since a moment."""
    for kind in Kind:
        for folder in folders(storage, kind):
            written = folder.manifest
            if written is not None and (since is None or written.changed_at >= since - CLOCKS_DIFFER):
                yield folder.place


class Verifier:
    """Use it as often as wanted; raises the storage's errors only where it lists."""

    def __init__(self, storage: Storage, since: datetime | None = None) -> None:
        """Pass over what was stored before `since`."""
        self._storage = storage
        self._since = since

    def verify(self, refs: Iterable[PredictionRef]) -> Iterator[Verified | None]:
        """Verify many at the same time, in their order; None for what is not stored, or before `since`."""
        waiting = iter(refs)
        with ThreadPoolExecutor(AT_ONCE) as manifests, ThreadPoolExecutor(AT_ONCE) as files:
            running: deque[Future[Verified | None]] = deque()
            try:
                while True:
                    for ref in islice(waiting, AHEAD - len(running)):
                        running.append(manifests.submit(self._one, ref, files))
                    if not running:
                        return
                    yield running.popleft().result()
            finally:
                manifests.shutdown(wait=False, cancel_futures=True)

    def _one(self, ref: PredictionRef, files: ThreadPoolExecutor) -> Verified | None:
        for last in (False, True):
            try:
                manifest = self._storage.read_manifest(*ref)
                if manifest is None and self._storage.head(manifest_name(*ref)) is not None:
                    return Verified(0, 0, (_odd("unreadable", ref, manifest_name(*ref), "it is torn"),))
            except Removed:
                return None
            except OutkeepError as error:
                return Verified(0, 0, (_odd("unreadable", ref, manifest_name(*ref), error.message),))
            if manifest is None or (self._since is not None and manifest.stored_at < self._since):
                return None
            found = list(files.map(self._compare, [(manifest, file) for file in manifest.kept]))
            odd = tuple(one for one in found if one is not None)
            if last or not odd:
                return Verified(len(found), sum(file.size or 0 for file in manifest.kept), odd)
            # It may have been removed, or replaced, meanwhile: it is looked at once more.
        return None

    def _compare(self, wanted: tuple[Manifest, KeptFile]) -> Odd | None:
        manifest, file = wanted
        ref = (manifest.prediction.kind, manifest.prediction.id)
        name = object_name(*ref, file.name or "")
        try:
            found = self._storage.digest(name)
        except OutkeepError as error:
            return _odd("unreadable", ref, name, error.message)
        if found is None:
            return _odd("missing", ref, name, f"{file.size} bytes are gone")
        size, digest = found
        if size != file.size:
            return _odd("differs", ref, name, f"it has {size} bytes, and had {file.size}")
        if digest != file.sha256:
            return _odd("differs", ref, name, f"its SHA-256 is {digest}, and was {file.sha256}")
        return None


def _odd(problem: str, ref: PredictionRef, name: str, detail: str) -> Odd:
    return Odd(problem, *ref, name, detail)
