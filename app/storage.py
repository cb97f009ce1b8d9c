"""The ledger of outputs: an object store with files, and beside them the manifest that commits them."""

import errno
import re
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import from_url

from app.core import manifest as manifests
from app.core.errors import Permanent, Transient
from app.core.manifest import Manifest
from app.core.names import Kind, manifest_name
from app.core.repairs import is_draft
from app.disk import fsync, make_folder

CHUNK = 1 << 20
"""Bytes held at a time while a file passes through."""

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)", re.ASCII)
_CODES = {
    errno.ENOSPC: "storage_full",
    errno.EDQUOT: "storage_full",
    errno.EACCES: "storage_denied",
    errno.EPERM: "storage_denied",
    errno.EROFS: "storage_denied",
}


@dataclass(frozen=True)
class Stored:
    """What the store says of an object; `size` in bytes."""

    size: int
    etag: str | None
    changed_at: datetime


class Storage:
    """Objects under one URL. All methods block: call them in a thread from a coroutine.

    A write has reached the disk (`file://`), or is acknowledged by the store, when its method returns.
    Errors are `Transient`, also those that an operator must mend: they are tried again until then.
    """

    def __init__(self, url: str) -> None:
        """Take `url`; nothing is read or written yet. Raises `Permanent` when a remote store refuses it."""
        self.url = url
        parts = urlsplit(url)
        # An absolute path survives a later change of the working directory.
        self._root = Path(unquote(parts.path)).absolute() if parts.scheme == "file" else None
        if self._root is None:
            try:
                _ = self._store
            except (BaseError, OSError, ValueError) as error:
                raise Permanent("storage_unusable", f"cannot open {url}: {_first_line(error)}") from None

    @cached_property
    def _store(self) -> Any:
        """The store; of a local folder only once that exists, since looking must not create it."""
        return from_url(self._root.as_uri() if self._root else self.url)

    def check_writable(self) -> None:
        """Prove that a local folder can be written; raises `Permanent`. Remote stores are not asked here."""
        if self._root is None:
            return
        try:
            make_folder(self._root)
            with tempfile.TemporaryFile(dir=self._root):
                pass
        except OSError as error:
            raise Permanent(
                "storage_unusable",
                f"cannot write to {self._root}: {error.strerror}; check its owner and mode",
            ) from None

    @property
    def folder(self) -> Path | None:
        """The local folder; None for a remote store."""
        return self._root

    def _prepare(self) -> Any:
        if self._root is not None:
            make_folder(self._root)
        return self._store

    def _is_absent(self) -> bool:
        return self._root is not None and not self._root.exists()

    def put_file(self, name: str, path: Path) -> None:
        """Store the file at `path` under `name`, overwriting: names and bytes are deterministic.

        It is gone from `path` then: moved where that is the same disk, else copied. After an error it may be.
        """
        with _translated(name):
            store = self._prepare()
            if self._root is not None and _moved(path, self._root / name):
                self._sync_folders(name)
                return
            with path.open("rb") as source, obstore.open_writer(store, name, buffer_size=CHUNK) as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
            self._sync(name)
            path.unlink()

    def put_bytes(self, name: str, data: bytes) -> None:
        """Store a small object under `name`, overwriting."""
        with _translated(name):
            obstore.put(self._prepare(), name, data)
            self._sync(name)

    def create(self, name: str, data: bytes) -> bool:
        """Store a small object unless `name` exists; whether it was stored."""
        with _translated(name):
            try:
                obstore.put(self._prepare(), name, data, mode="create")
            except AlreadyExistsError:
                created = False
            else:
                created = True
            # What is there already may have been written by a process that was killed before its fsync.
            self._sync(name)
            return created

    def get(self, name: str) -> bytes | None:
        """A small object whole; None when there is none."""
        with _translated(name):
            if self._is_absent():
                return None
            try:
                return bytes(obstore.get(self._store, name).bytes())
            except (FileNotFoundError, NotFoundError):
                return None

    def head(self, name: str) -> Stored | None:
        """What there is under `name`."""
        with _translated(name):
            if self._is_absent():
                return None
            try:
                meta = obstore.head(self._store, name)
            except (FileNotFoundError, NotFoundError):
                return None
        return Stored(meta["size"], meta["e_tag"], meta["last_modified"])

    def names(self, prefix: str) -> Iterator[str]:
        """All object names below a folder."""
        return (name for name, _ in self.listed(prefix))

    def listed(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """All object names below a folder, with the times of their latest change."""
        return ((name, stored.changed_at) for name, stored in self.objects(prefix))

    def objects(self, prefix: str) -> Iterator[tuple[str, Stored]]:
        """All objects below a folder; those of one folder come one after the other."""
        with _translated(prefix):
            if self._is_absent():
                return
            for page in obstore.list(self._store, prefix=prefix):
                for meta in page:
                    yield meta["path"], Stored(meta["size"], meta["e_tag"], meta["last_modified"])

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects; one that is gone already does not matter."""
        if not names:
            return
        with _translated(names[0]):
            if self._is_absent():
                return
            try:
                obstore.delete(self._store, list(names))
            except (FileNotFoundError, NotFoundError):
                for name in names:
                    with suppress(FileNotFoundError, NotFoundError):
                        obstore.delete(self._store, name)
            if self._root is not None:
                for folder in {(self._root / name).parent for name in names}:
                    with suppress(FileNotFoundError):
                        fsync(folder)

    def remove_folder(self, prefix: str) -> None:
        """Remove a folder whose objects are gone, with what killed writes left in it and no list shows."""
        if self._root is None:
            return  # elsewhere folders are but a part of names
        folder = self._root / prefix
        with _translated(prefix):
            try:
                drafts = [path for path in folder.iterdir() if is_draft(path.name)]
            except FileNotFoundError:
                return
            for path in drafts:
                path.unlink(missing_ok=True)
            with suppress(OSError):  # somebody writes into it again
                folder.rmdir()
                fsync(folder.parent)

    async def stream(self, name: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes `start` up to but without `end`; for large objects, in pieces."""
        with _translated(name):
            result = await obstore.get_async(self._store, name, options={"range": (start, end)})
            async for chunk in result.stream(min_chunk_size=64 << 10):
                yield bytes(chunk)

    def read_manifest(self, kind: Kind, prediction_id: str) -> Manifest | None:
        """The manifest of a prediction; None when nothing is committed."""
        data = self.get(manifest_name(kind, prediction_id))
        return manifests.read(data) if data is not None else None

    def commit(self, manifest: Manifest) -> Manifest:
        """Write the manifest unless a better one stands there; give back the one that counts."""
        prediction = manifest.prediction
        name = manifest_name(prediction.kind, prediction.id)
        data = manifest.to_json()
        if self.create(name, data):
            return manifest
        present = self.read_manifest(prediction.kind, prediction.id)
        if present is not None and not manifest.replaces(present):
            return present
        self.put_bytes(name, data)
        return manifest

    def _sync(self, name: str) -> None:
        # obstore offers no fsync for local files, so we do it: the bytes first, then each folder entry.
        if self._root is not None:
            fsync(self._root / name)
            self._sync_folders(name)

    def _sync_folders(self, name: str) -> None:
        assert self._root is not None
        for folder in (self._root / name).parents:
            fsync(folder)
            if folder == self._root:
                break


def _moved(path: Path, target: Path) -> bool:
    """Move a file, whole and its bytes on the disk, to `target`; False when that is on another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent.stat()
    if path.stat().st_dev != folder.st_dev:
        return False
    path.chmod(folder.st_mode & 0o666)  # as readable as what is written there
    fsync(path)  # before it takes the place of what may be a whole file
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:  # one disk, mounted twice
            raise
        return False
    return True


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Keep the library's errors in this module."""
    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
        raise Transient("storage_denied", f"the storage refuses {name}: {_first_line(error)}") from error
    except (InvalidPathError, ValueError) as error:
        raise Permanent("storage_name", f"the storage takes no such name: {_first_line(error)}") from error
    except (BaseError, OSError) as error:
        reason = _first_line(error)
        raise Transient(_code(error), f"the storage failed on {name}: {reason}") from error


def _code(error: BaseException) -> str:
    """The code for what the system said; obstore hides its number in the text."""
    hidden = _SYSTEM_ERROR.search(str(error))
    number = int(hidden[1]) if hidden else getattr(error, "errno", None)
    return _CODES.get(number or 0, "storage_unavailable")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
