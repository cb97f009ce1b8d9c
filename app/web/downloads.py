"""Files of chosen predictions as one zip archive, streamed: it stands nowhere, and any size fits."""

import asyncio
import zipfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from app.core.errors import Rejected
from app.core.manifest import Manifest
from app.core.names import Kind, object_name
from app.receive.files import Streamed
from app.web.library import Library

AT_ONCE = 2
"""Archives that are sent at the same time."""

MOST_BYTES = 20 << 30


class _Pieces:
    """A file that is only written to, in order, and emptied meanwhile."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes, /) -> int:
        self._written += data
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is held."""

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken


@dataclass(frozen=True)
class Download:
    """Makes archives."""

    library: Library
    _places: asyncio.Semaphore = field(
        init=False, repr=False, default_factory=partial(asyncio.Semaphore, AT_ONCE)
    )

    async def answer(self, _: Request, refs: Sequence[tuple[Kind, str]]) -> Response:
        """The archive; raises `Rejected` (404, 413, 429), the storage's errors."""
        if self._places.locked():
            raise Rejected("busy", "other archives are on their way; try again in a while", status=429)
        manifests = await self.library.run(partial(self._manifests, refs))
        total = sum(file.size or 0 for manifest in manifests for file in manifest.kept)
        if not any(manifest.kept for manifest in manifests):
            raise Rejected("not_found", "nothing of what was chosen has a stored file", status=404)
        if total > MOST_BYTES:
            raise Rejected("too_large", f"these are {total >> 30} GiB; choose fewer", status=413)
        headers = {
            "content-disposition": 'attachment; filename="outkeep.zip"',
            "cache-control": "no-store",
            "x-accel-buffering": "no",
        }
        return Streamed(self._pieces(manifests), headers=headers, media_type="application/zip")

    def _manifests(self, refs: Sequence[tuple[Kind, str]]) -> list[Manifest]:
        found = [self.library.storage.read_manifest(*ref) for ref in refs]
        return [manifest for manifest in found if manifest is not None]

    async def _pieces(self, manifests: Sequence[Manifest]) -> AsyncIterator[bytes]:
        async with self._places:
            pieces = _Pieces()
            # Stored as they are: pictures, films and sounds hold no air.
            with zipfile.ZipFile(pieces, "w", zipfile.ZIP_STORED) as archive:
                for manifest in manifests:
                    prediction = manifest.prediction
                    for file in manifest.kept:
                        name = object_name(prediction.kind, prediction.id, file.name or "")
                        info = zipfile.ZipInfo(name, manifest.stored_at.timetuple()[:6])
                        info.external_attr = 0o644 << 16
                        size = file.size or 0
                        with archive.open(info, "w", force_zip64=True) as entry:
                            if not size:
                                continue
                            async for piece in self.library.storage.stream(name, 0, size, size=size):
                                entry.write(piece)
                                yield pieces.take()
            yield pieces.take()
