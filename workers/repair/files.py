"""Remove what killed processes left on this host, and orphaned bodies in the storage."""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from app.accept.records import Records
from app.core.lifecycle import CLAIM_AFTER, Repair, is_half_written, is_stray_download
from app.core.names import CLAIMS, Kind, held_place, manifest_name, split_claim_name
from app.storage.store import Storage
from workers.keep.scratch import PREFIX, remove_abandoned

WALK_EVERY = 3600.0
"""Seconds between walks through the stored files, which may be millions."""

LIST_EVERY = 600.0
"""Seconds between looks for orphaned bodies: each is a listing that a store may charge for."""

log = logging.getLogger("outkeep.sweep")


class LocalFiles:
    """The part of the sweep that looks at the files of this host.

    `temporary` is the folder of temporary files, `outputs` that of stored files (None: a remote store).
    Parked downloads stay for `held_for` seconds, and as long as their prediction has a record: they may wait
    for the operator. They go at once when the prediction was removed, or kept by another host. `now` tells
    the Unix time.
    """

    def __init__(
        self,
        temporary: Path,
        outputs: Path | None,
        records: Records,
        *,
        held_for: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._temporary = temporary
        self._outputs = outputs
        self._records = records
        self._held_for = held_for
        self._now = now
        self._walked_at: float | None = None

    def run(self) -> Counter[Repair]:
        """Remove what belongs to nobody; how much that was. Raises OSError and redis-py's errors."""
        abandoned, found = remove_abandoned(self._temporary), []
        # Also in the folder of a process that lives and failed to remove one.
        for folder in (self._temporary, *self._temporary.glob(f"{PREFIX}*")):
            found += [path for path, age in self._files_in(folder) if self._is_stray(path.name, age)]
        if self._walked_at is None or self._now() - self._walked_at >= WALK_EVERY:
            self._walked_at = self._now()
            found += self._half_written()
        for path in found:
            path.unlink(missing_ok=True)
        for path in (removed := [*abandoned, *found]):
            facts = {"repair": Repair.FILE_REMOVED, "file": str(path)}
            log.warning("repaired: %s", Repair.FILE_REMOVED, extra=facts)
        return Counter({Repair.FILE_REMOVED: len(removed)})

    def _half_written(self) -> Iterator[Path]:
        """What killed writes left beside stored files."""
        if self._outputs is None:
            return
        shelves = [self._outputs / name for name in (*(kind.folder for kind in Kind), "quarantine")]
        inner = (folder for shelf in shelves for folder in _folders_in(shelf))
        for folder in (self._outputs / CLAIMS, *inner):
            yield from (path for path, age in self._files_in(folder) if is_half_written(path.name, age))

    def _is_stray(self, name: str, age: float) -> bool:
        ref = held_place(name)
        # Another host may have fetched and stored all of it meanwhile: then nobody comes for this copy.
        if ref is not None and (self._records.is_removed(*ref) or self._records.is_kept(*ref)):
            return True
        stray = is_stray_download(name, age, held_for=self._held_for)
        return stray and (ref is None or self._records.get(*ref) is None)

    def _files_in(self, folder: Path) -> Iterator[tuple[Path, float]]:
        """Each file with the seconds since its last change."""
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        changed_at = entry.stat(follow_symlinks=False).st_mtime
                        yield Path(entry.path), self._now() - changed_at


def _folders_in(folder: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


class OrphanedBodies:
    """The part of the sweep that looks at the large bodies that wait in the storage.

    Once the manifest is written, or the prediction removed, a body is needed no more, whoever still brings
    it. Without a manifest it stays while a record points to it, and for `held_for` seconds, so that no
    delivery of the same bytes can meet its removal. `now` tells the Unix time.
    """

    def __init__(
        self, storage: Storage, records: Records, *, held_for: float, now: Callable[[], float]
    ) -> None:
        self._storage = storage
        self._records = records
        self._held_for = held_for
        self._now = now
        self._listed_at: float | None = None

    def run(self) -> Counter[Repair]:
        """Remove them; how many there were. Raises errors of the storage and of redis-py."""
        now = self._now()
        if self._listed_at is not None and now - self._listed_at < LIST_EVERY:
            return Counter()
        self._listed_at = now
        orphaned = []
        for name, changed_at in self._storage.listed(CLAIMS):
            if self._is_orphaned(name, now - changed_at.timestamp()):
                orphaned.append(name)
        self._storage.remove(orphaned)
        for name in orphaned:
            facts = {"repair": Repair.CLAIM_REMOVED, "object": name}
            log.warning("repaired: %s", Repair.CLAIM_REMOVED, extra=facts)
        return Counter({Repair.CLAIM_REMOVED: len(orphaned)})

    def _is_orphaned(self, name: str, age: float) -> bool:
        claim = split_claim_name(name)
        if claim is None or age < CLAIM_AFTER:
            return False
        ref = claim[:2]
        if self._storage.head(manifest_name(*ref)) is not None or self._records.is_removed(*ref):
            return True
        record = self._records.get(*ref)
        return age >= self._held_for and (record is None or record.body_at != name)
