"""One file of a prediction: what it is called, how it is brought here, and how it comes into storage."""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

from app.core import content, media
from app.core.answers import Body
from app.core.data_uri import decode_data_uri, source_of
from app.core.manifest import KeptFile
from app.core.names import Kind, file_name, object_name, output_stem
from app.core.outputs import OutputFile
from app.storage.errors import Small
from app.storage.store import HANGS, Storage
from workers.keep.download import Fetched, park, parked

SLOWEST = 1 << 20
"""Bytes a second of a storage that is slow and does not hang."""


@dataclass(frozen=True)
class Wanted:
    """A file that is to be kept: `number` is its place in order of appearance, `stem` begins its name.

    `source` is what the manifest says of its origin: the URL, or the hash of a `data:` URI.
    """

    kind: Kind
    id: str
    number: int
    place: OutputFile
    source: str
    stem: str

    @property
    def parked(self) -> int:
        """The number under which its download is parked: not its own, which another setting would change."""
        return int.from_bytes(hashlib.sha256(self.source.encode()).digest()[:6])

    @classmethod
    def of(
        cls, kind: Kind, prediction_id: str, number: int, place: OutputFile, *, stem: str | None = None
    ) -> Self:
        """Hashes `data:` URIs, some milliseconds a megabyte: use a thread. Outputs need no `stem`."""
        source = source_of(place.source) if place.is_inline else place.source
        return cls(kind, prediction_id, number, place, source, stem or output_stem(number))

    def noted(self, file: KeptFile) -> dict[str, Any]:
        """How it ended, for the record. Where it came from stands in the event, and may be long."""
        return {**file.to_object(), "pointer": "", "source": self._digest}

    def recalled(self, noted: Mapping[str, Any] | None) -> KeptFile | None:
        """The same back; None when nothing, or another file, was noted."""
        if noted is None or noted["source"] not in {self._digest, self.source}:
            return None
        return KeptFile(**{**noted, "pointer": self.place.pointer, "source": self.source})

    @property
    def _digest(self) -> str:
        return hashlib.sha256(self.source.encode()).hexdigest()


class Fetches(Protocol):
    """What downloads: `Fetcher` for outputs, `InputFetcher` for inputs."""

    async def fetch(self, url: str, *, timeout: float, before: Body | None) -> Fetched:  # noqa: ASYNC109 - its end is an error of ours
        """Download `url`, whole, into a temporary file of the caller's."""


@dataclass(frozen=True)
class Ready:
    """A file in memory that is to be stored together with the manifest, which follows at once."""

    wanted: Wanted
    fetched: Fetched


@dataclass(frozen=True)
class Keeper:
    """Names and bytes are deterministic: keeping a file twice, or twice at once, ends in the same object."""

    storage: Storage
    fetcher: Fetches
    folder: Path
    """Where downloads wait that the storage did not take."""

    async def bring(
        self,
        wanted: Wanted,
        *,
        may_be_parked: bool,
        timeout: float,  # noqa: ASYNC109 - the fetcher's
        before: Body | None = None,
    ) -> Fetched:
        """What an earlier run on this host could not store, else a download of at most `timeout` seconds.

        `before` is what the download just before this one brought, if that alone could not be believed.
        Raises what the fetcher raises.
        """
        found = None
        if may_be_parked:  # it is read whole
            place = (wanted.kind, wanted.id, wanted.parked)
            found = await asyncio.to_thread(parked, self.folder, *place)
        return found or await self.fetcher.fetch(wanted.source, timeout=timeout, before=before)

    async def store(self, wanted: Wanted, fetched: Fetched) -> KeptFile:
        """Bring a file into storage; what that does not take is parked. Raises what `Storage` raises."""
        try:
            return await self.storage.run(
                partial(self._store, wanted, fetched),
                about=_name(wanted),
                seconds=HANGS + fetched.size / SLOWEST,
            )
        except BaseException:
            await self.park(wanted, fetched)
            raise

    async def park(self, wanted: Wanted, fetched: Fetched) -> None:
        """Keep a file on this host until the storage takes it, or another host has stored it."""
        await asyncio.to_thread(park, fetched, self.folder, wanted.kind, wanted.id, wanted.parked)

    async def store_inline(self, wanted: Wanted) -> KeptFile:
        """Store what a `data:` URI holds. Raises what `decode_data_uri` and `Storage` raise."""
        return await self.storage.run(partial(self._store_inline, wanted), about=_name(wanted))

    def prepare(self, ready: Ready) -> tuple[KeptFile, Small]:
        """What the manifest says of a file, and the object to be stored with it; hashes it: use a thread."""
        kept = _described(ready.wanted, ready.fetched)
        assert kept.name is not None
        name = object_name(ready.wanted.kind, ready.wanted.id, kept.name)
        return kept, (name, ready.fetched.read(), kept.encoding)

    def _store(self, wanted: Wanted, fetched: Fetched) -> KeptFile:
        kept = _described(wanted, fetched)
        assert kept.name is not None
        name = object_name(wanted.kind, wanted.id, kept.name)
        if fetched.path is None:
            self.storage.put_bytes(name, fetched.read(), encoding=kept.encoding)
        else:
            self.storage.put_file(name, fetched.path, encoding=kept.encoding)
        return kept

    def _store_inline(self, wanted: Wanted) -> KeptFile:
        declared, data = decode_data_uri(wanted.place.source)
        hint = media.extension_for_media_type(declared) or media.UNKNOWN
        extension = media.extension(data[: content.HEAD], url_path=f"output.{hint}")
        kept = of_bytes(wanted.place.pointer, wanted.source, file_name(wanted.stem, extension), data)
        self.storage.put_bytes(object_name(wanted.kind, wanted.id, str(kept.name)), data)
        return kept


def of_bytes(pointer: str, source: str | None, name: str, data: bytes) -> KeptFile:
    """What the manifest says of bytes that are no download."""
    kind = media.media_type(name.rpartition(".")[2])
    return KeptFile(pointer, source, name, kind, len(data), hashlib.sha256(data).hexdigest())


def _described(wanted: Wanted, fetched: Fetched) -> KeptFile:
    named = fetched.name or urlsplit(wanted.source).path
    # Bytes that have a coding say nothing of what they are without it.
    head = b"" if fetched.encoding else fetched.head
    extension = media.extension(head, url_path=named, declared=fetched.declared)
    return KeptFile(
        wanted.place.pointer,
        wanted.source,
        file_name(wanted.stem, extension),
        media.media_type(extension),
        fetched.size,
        fetched.digest(),
        encoding=fetched.encoding,
    )


def _name(wanted: Wanted) -> str:
    return object_name(wanted.kind, wanted.id, wanted.stem)
