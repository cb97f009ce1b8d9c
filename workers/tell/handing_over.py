"""Stored files given to Replicate as inputs, for when it cannot fetch them from us."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from app.core import media
from app.core.errors import Permanent, StorageFailure
from app.core.manifest import KeptFile, Manifest
from app.core.names import object_name
from app.replicate.creation import Creator
from app.storage.store import Storage

MOST = 100 << 20
"""Bytes that Replicate takes as an uploaded file, by its documentation."""


@dataclass(frozen=True)
class HandingOver:
    """What they are uploaded with; `folder` is for copies of what a remote store holds."""

    creator: Creator
    storage: Storage
    folder: Path

    async def upload(self, manifest: Manifest, file: KeptFile) -> str:
        """Upload a stored file; the URL that stands for it in an input. Raises `OutkeepError`."""
        assert file.name is not None
        size = file.size or 0
        if size > MOST:
            raise Permanent(
                "file_too_large",
                f"{file.name} has {size >> 20} MiB, and Replicate takes uploads of {MOST >> 20} MiB; "
                "set OUTKEEP_PUBLIC_URL, and a link is given instead",
            )
        name = object_name(manifest.prediction.kind, manifest.prediction.id, file.name)
        called, media_type = file.name, file.media_type
        if file.encoding is not None:
            # An upload carries no coding beside the bytes: its name and type have to say it.
            packed = media.packed(file.encoding)
            called, media_type = f"{file.name}.{packed}", media.media_type(packed)
        async with self._at_hand(name) as path:
            try:
                return await self.creator.upload(path, name=called, media_type=media_type)
            except FileNotFoundError:
                raise Permanent("file_missing", f"{name} is not in the storage any more") from None

    @asynccontextmanager
    async def _at_hand(self, name: str) -> AsyncIterator[Path]:
        """A path of this host that holds a stored object."""
        if self.storage.folder is not None:
            yield self.storage.folder / name
            return
        stored = await asyncio.to_thread(self.storage.head, name)
        if stored is None:
            raise Permanent("file_missing", f"{name} is not in the storage any more")
        path = await asyncio.to_thread(self._draft)
        try:
            await self._copy(name, stored.size, path)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _draft(self) -> Path:
        descriptor, path = tempfile.mkstemp(prefix="upload-", suffix=".part", dir=self.folder)
        os.close(descriptor)
        return Path(path)

    async def _copy(self, name: str, size: int, path: Path) -> None:
        try:
            with path.open("wb") as target:
                async for piece in self.storage.stream(name, 0, size):
                    await asyncio.to_thread(target.write, piece)
        except OSError as error:
            raise StorageFailure("storage_full", f"no room to copy {name}: {error.strerror}") from error
