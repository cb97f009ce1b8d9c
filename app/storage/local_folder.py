"""The part of the storage that lies in a folder of this host: durable by our own fsync."""

import errno
import itertools
import os
import random
import re
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import NotFoundError
from obstore.store import from_url

from app.core.errors import Permanent
from app.core.lifecycle import is_draft
from app.disk import fsync, make_folder, write
from app.storage.errors import Large, Small

MISSING = (FileNotFoundError, NotFoundError)

CHUNK = 1 << 20
"""Bytes held at a time while a file is read or copied."""

KNOWN = 10_000
"""Folders whose own entry is known to be on the disk; more are synced once more."""

_ODD = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|[\0-\x1f\x7f]|#[0-9]+(?=/|$)")
"""What no name of an object has: a step up, an empty one, a control character, the name of a draft."""


class FolderSyncs:
    """One sync of a folder serves every thread that asked before it began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folders: dict[Path, _Syncs] = {}

    def sync(self, folder: Path) -> None:
        """Return when the entries that a folder has now are on the disk; raises `OSError`."""
        with self._lock:
            syncs = self._folders.setdefault(folder, _Syncs())
            syncs.asked += 1
            syncs.waiting += 1
            mine = syncs.asked
        try:
            with syncs.running:
                if syncs.covered < mine:
                    covers = syncs.asked
                    fsync(folder)
                    syncs.covered = covers
        finally:
            with self._lock:
                syncs.waiting -= 1
                if not syncs.waiting:
                    del self._folders[folder]


class _Syncs:
    """How often a sync was asked for, and up to which of these it is done."""

    def __init__(self) -> None:
        self.running = threading.Lock()
        self.asked = self.covered = self.waiting = 0


class LocalFolder:
    """Objects as files below `root`. obstore's and the system's errors pass through."""

    def __init__(self, root: Path) -> None:
        # An absolute path survives a later change of the working directory.
        self.root = root.absolute()
        self._mask = os.umask(0o077)  # which cannot be read otherwise
        os.umask(self._mask)
        self._numbers = itertools.count(random.getrandbits(32))  # of drafts: other processes write, too
        self._syncs = FolderSyncs()
        self._known: dict[Path, None] = {}

    @cached_property
    def store(self) -> Any:
        """The store; only once the folder exists, since looking must not create it."""
        return from_url(self.root.as_uri())

    def is_absent(self) -> bool:
        """Whether there is nothing to look into."""
        return not self.root.exists()

    def is_linked(self, folder: str) -> bool:
        """Whether a folder is reached through a link below one of ours, so that its files are not ours."""
        parts = folder.split("/")
        return any((self.root / "/".join(parts[:depth])).is_symlink() for depth in range(2, len(parts) + 1))

    def check(self) -> None:
        """Prove that it can be written; raises `Permanent`."""
        try:
            make_folder(self.root)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise Permanent(
                "storage_unusable",
                f"cannot write to {self.root}: {error.strerror}; check its owner and mode",
            ) from None

    def put_file(self, name: str, path: Path, encoding: str | None) -> None:  # noqa: ARG002
        """Move the file at `path` to its place, or copy it from another disk; only the manifest says more."""
        target = self._path(name)
        self._make_folder(target.parent)
        if not self._moved(path, target):
            descriptor, draft = self._draft(target)
            with _removed_after_failure(draft), os.fdopen(descriptor, "wb") as copy:
                with path.open("rb") as source:
                    shutil.copyfileobj(source, copy, CHUNK)
                copy.flush()
                os.fsync(descriptor)
                draft.rename(target)
        self._settle_folders([target])

    def _moved(self, path: Path, target: Path) -> bool:
        """Move a file, whole and its bytes on the disk, to `target`; False when that is on another disk.

        It may be read there by whom the umask does not exclude.
        """
        if path.stat().st_dev != target.parent.stat().st_dev:
            return False
        path.chmod(0o666 & ~self._mask)
        fsync(path)  # before it takes the place of what may be a whole file
        try:
            path.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:  # one disk, mounted twice
                raise
            return False
        return True

    def create(self, name: str, data: bytes) -> bool:
        """Store a small object unless there is one; whether it was stored."""
        return self.write((), (name, data))

    def write(self, objects: Sequence[Small], last: tuple[str, bytes] | None = None) -> bool:
        """Store small objects, overwriting, then `last` unless there is one; whether it was stored.

        Each folder is synced once for all that was written into it.
        """
        written = []
        for name, data, _ in objects:
            draft = self._written(target := self._path(name), data)
            with _removed_after_failure(draft):
                draft.rename(target)
            written.append(target)
        if last is None:
            self._settle_folders(written)
            return True
        draft = self._written(target := self._path(last[0]), last[1])
        try:
            os.link(draft, target)
        except FileExistsError:
            # It may have been written by a process that was killed before its fsync.
            fsync(target)
            created = False
        else:
            created = True
        finally:
            with suppress(OSError):
                draft.unlink()
        self._settle_folders([*written, target])
        return created

    def note(self, name: str, data: bytes) -> None:
        """Store a small object whose loss does no harm, with one sync: a power cut may tear or take it."""
        descriptor, draft = self._draft(target := self._path(name))
        with _removed_after_failure(draft), os.fdopen(descriptor, "wb", buffering=0) as file:
            write(descriptor, data)
            draft.rename(target)
            os.fsync(file.fileno())  # with the name that it has now, on the file systems that are in use

    def _written(self, target: Path, data: bytes) -> Path:
        """Write a draft of an object, and sync it; its path."""
        descriptor, draft = self._draft(target)
        with _removed_after_failure(draft):
            try:
                write(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return draft

    def _draft(self, target: Path) -> tuple[int, Path]:
        """Open a new file beside `target`, as `is_draft` knows them; its descriptor and path."""
        while True:
            draft = Path(f"{target}#{next(self._numbers)}")
            try:
                return os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), draft
            except FileExistsError:
                continue  # of a process that was killed
            except FileNotFoundError:
                self._make_folder(target.parent)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder below `root`, with those that lead to it."""
        if folder == self.root:
            make_folder(self.root)
            return
        try:
            folder.mkdir()
        except FileExistsError:
            return
        except FileNotFoundError:
            self._make_folder(folder.parent)
            with suppress(FileExistsError):
                folder.mkdir()
        self._known.pop(folder, None)

    def _path(self, name: str) -> Path:
        """Where an object lies; raises `ValueError` for what is no name of one."""
        if _ODD.search(name):
            raise ValueError(f"{name[:200]!r} is no name of an object")
        return self.root / name

    def _settle_folders(self, targets: Sequence[Path]) -> None:
        """Sync the folder of each, and those above it whose own entry may not be on the disk yet."""
        for each in dict.fromkeys(target.parent for target in targets):
            folder = each
            self._syncs.sync(folder)
            while folder != self.root and folder not in self._known:
                above = folder.parent
                self._syncs.sync(above)
                if len(self._known) >= KNOWN:
                    self._known.clear()
                self._known[folder] = None
                folder = above

    def get(self, name: str, most: int | None = None) -> bytes | None:
        """A small object whole; None when there is none. Raises `Large` for one of more than `most` bytes."""
        try:
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            size = os.fstat(descriptor).st_size
            if most is not None and size > most:
                raise Large
            data = os.read(descriptor, size + 1)
            while len(data) > size:  # it has grown, or tells no size
                size = len(data)
                data += os.read(descriptor, CHUNK)
        except IsADirectoryError:
            return None
        else:
            return data
        finally:
            os.close(descriptor)

    def head(self, name: str) -> Mapping[str, Any] | None:
        """What is said of an object; None when there is none."""
        if self.is_absent():
            return None
        try:
            return obstore.head(self.store, name)
        except MISSING:
            return None

    def read(self, name: str) -> Iterator[bytes]:
        """An object whole, in pieces; raises as obstore does, `MISSING` when there is none."""
        if self.is_absent():
            raise FileNotFoundError(name)
        return map(bytes, obstore.get(self.store, name).stream(min_chunk_size=CHUNK))

    async def stream(self, name: str, start: int, end: int, *, size: int | None) -> AsyncIterator[bytes]:  # noqa: ARG002
        """Bytes `start` up to but without `end`."""
        result = await obstore.get_async(self.store, name, options={"range": (start, end)})
        async for chunk in result.stream(min_chunk_size=64 << 10):
            yield bytes(chunk)

    def listed(self, prefix: str) -> Iterator[Any]:
        """What lies below a folder; files of one folder come one after the other."""
        return (meta for page in obstore.list(self.store, prefix=prefix) for meta in page)

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects, lastingly; one that is gone already does not matter."""
        if self.is_absent():
            return
        for name in names:
            with suppress(*MISSING):
                obstore.delete(self.store, name)
        # A power cut must not bring them back.
        for folder in {(self.root / name).parent for name in names}:
            with suppress(FileNotFoundError):
                fsync(folder)

    def settle(self, name: str) -> None:
        """Return when the object has reached the disk: first the bytes, then each folder entry."""
        fsync(target := self._path(name))
        self._settle_folders([target])

    def remove_folder(self, prefix: str) -> None:
        """Remove a folder whose objects are gone, with what killed writes left in it."""
        folder = self.root / prefix
        try:
            drafts = [path for path in folder.iterdir() if is_draft(path.name)]
        except FileNotFoundError:
            return
        for path in drafts:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # somebody writes into it again
            folder.rmdir()
            fsync(folder.parent)

    def link(self, name: str) -> None:
        """Nobody but us can serve them."""


@contextmanager
def _removed_after_failure(draft: Path) -> Iterator[None]:
    """Remove what was being written when this block fails, as far as the disk lets us."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
