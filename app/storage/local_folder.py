"""The part of the storage that lies in a folder of this host: durable by our own fsync."""

import errno
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, NotFoundError
from obstore.store import from_url

from app.core.errors import Permanent
from app.core.lifecycle import is_draft
from app.disk import fsync, make_folder

MISSING = (FileNotFoundError, NotFoundError)

CHUNK = 1 << 20
"""Bytes held at a time while a file is copied."""


class LocalFolder:
    """Objects as files below `root`. obstore's and the system's errors pass through."""

    def __init__(self, root: Path) -> None:
        # An absolute path survives a later change of the working directory.
        self.root = root.absolute()
        self._mask = os.umask(0o077)  # which cannot be read otherwise
        os.umask(self._mask)

    @cached_property
    def store(self) -> Any:
        """The store; only once the folder exists, since looking must not create it."""
        return from_url(self.root.as_uri())

    def prepare(self) -> Any:
        """The store, its folder made."""
        make_folder(self.root)
        return self.store

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
        store = self.prepare()
        if _moved(path, self.root / name, self._mask):
            self._sync_folders(name)
            return
        with path.open("rb") as source, obstore.open_writer(store, name, buffer_size=CHUNK) as target:
            while chunk := source.read(CHUNK):
                target.write(chunk)
        self.settle(name)

    def put_bytes(self, name: str, data: bytes) -> None:
        """Store a small object, overwriting."""
        obstore.put(self.prepare(), name, data)
        self.settle(name)

    def create(self, name: str, data: bytes) -> bool:
        """Store a small object unless there is one; whether it was stored."""
        try:
            obstore.put(self.prepare(), name, data, mode="create")
        except AlreadyExistsError:
            created = False
        else:
            created = True
        # What is there already may have been written by a process that was killed before its fsync.
        self.settle(name)
        return created

    def get(self, name: str) -> bytes | None:
        """A small object whole; None when there is none."""
        if self.is_absent():
            return None
        try:
            return bytes(obstore.get(self.store, name).bytes())
        except MISSING:
            return None

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
        # obstore offers no fsync for local files.
        fsync(self.root / name)
        self._sync_folders(name)

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

    def _sync_folders(self, name: str) -> None:
        for folder in (self.root / name).parents:
            fsync(folder)
            if folder == self.root:
                break

    def link(self, name: str) -> None:
        """Nobody but us can serve them."""


def _moved(path: Path, target: Path, mask: int) -> bool:
    """Move a file, whole and its bytes on the disk, to `target`; False when that is on another disk.

    It may be read there by whom `mask`, a umask, does not exclude.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent.stat()
    if path.stat().st_dev != folder.st_dev:
        return False
    path.chmod(0o666 & ~mask)
    fsync(path)  # before it takes the place of what may be a whole file
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:  # one disk, mounted twice
            raise
        return False
    return True
