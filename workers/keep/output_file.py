"""Downloads that wait on our disk while the storage fails, since their hour may pass before it is mended."""

import asyncio
import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

from app.core import content, media
from app.core.answers import Body
from app.core.data_uri import decode_data_uri, source_of
from app.core.manifest import KeptFile
from app.core.names import (
    TEXT_NAME,
    Kind,
    file_name,
    held_digest,
    held_mark,
    held_name,
    object_name,
    output_stem,
)
from app.core.outputs import OutputFile
from app.storage.store import HANGS, Storage
from workers.keep.fetch import HEAD_BYTES, Fetched


def hold(fetched: Fetched, folder: Path, kind: Kind, prediction_id: str, number: int) -> None:
    """Put a temporary file where `held` finds it; best effort, it never raises.

    `folder` outlives the process, unlike the one for what is being downloaded. The name holds the hash: after
    a power cut the file may not have all its bytes.
    """
    with suppress(OSError):
        digest = fetched.sha256 + held_mark(fetched.declared, fetched.encoding)
        fetched.path.rename(folder / held_name(kind, prediction_id, number, digest))


def held(folder: Path, kind: Kind, prediction_id: str, number: int) -> Fetched | None:
    """The download that an earlier run on this host could not store, if all of it is there."""
    for path in folder.glob(held_name(kind, prediction_id, number, "*")):
        with suppress(OSError):
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = os.fstat(file.fileno()).st_size
            wanted, declared, encoding = held_digest(path.name)
            if digest == wanted:
                return Fetched(path, size, digest, head, None, "", declared=declared, encoding=encoding)
            path.unlink()
    return None


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
class Keeper:
    """Names and bytes are deterministic: keeping a file twice, or twice at once, ends in the same object."""

    storage: Storage
    fetcher: Fetches
    folder: Path
    """Where downloads wait that the storage did not take."""

    def held(self, wanted: Wanted) -> Fetched | None:
        """The download that an earlier run on this host could not store; it is read whole: use a thread."""
        if wanted.place.is_inline:
            return None
        return held(self.folder, wanted.kind, wanted.id, wanted.parked)

    async def keep(
        self,
        wanted: Wanted,
        fetched: Fetched | None,
        *,
        timeout: float,  # noqa: ASYNC109 - the fetcher's
        before: Body | None = None,
    ) -> KeptFile:
        """Bring a file into storage: what `held` found, else a download of at most `timeout` seconds.

        `before` is what the download just before this one brought, if that alone could not be believed.
        Raises what the fetcher, `decode_data_uri` and `Storage` raise.
        """
        if wanted.place.is_inline:
            return await self.storage.run(partial(self._keep_inline, wanted), about=_name(wanted))
        fetched = fetched or await self.fetcher.fetch(wanted.source, timeout=timeout, before=before)
        try:
            return await self.storage.run(
                partial(self._store_file, wanted, fetched),
                about=_name(wanted),
                seconds=HANGS + fetched.size / SLOWEST,
            )
        except BaseException:
            await asyncio.to_thread(hold, fetched, self.folder, wanted.kind, wanted.id, wanted.parked)
            raise

    def keep_text(self, kind: Kind, prediction_id: str, text: str) -> KeptFile:
        """Store the text of an output."""
        return self._store(kind, prediction_id, KeptFile("/output", None, TEXT_NAME), text.encode())

    def _store_file(self, wanted: Wanted, fetched: Fetched) -> KeptFile:
        named = fetched.name or urlsplit(wanted.source).path
        # Bytes that have a coding say nothing of what they are without it.
        head = b"" if fetched.encoding else fetched.head
        extension = media.extension(head, url_path=named, declared=fetched.declared)
        name = file_name(wanted.stem, extension)
        path, encoding = object_name(wanted.kind, wanted.id, name), fetched.encoding
        self.storage.put_file(path, fetched.path, encoding=encoding)
        return KeptFile(
            wanted.place.pointer,
            wanted.source,
            name,
            media.media_type(extension),
            fetched.size,
            fetched.sha256,
            encoding=encoding,
        )

    def _keep_inline(self, wanted: Wanted) -> KeptFile:
        declared, data = decode_data_uri(wanted.place.source)
        hint = media.extension_for_media_type(declared) or media.UNKNOWN
        extension = media.extension(data[: content.HEAD], url_path=f"output.{hint}")
        name = file_name(wanted.stem, extension)
        return self._store(wanted.kind, wanted.id, KeptFile(wanted.place.pointer, wanted.source, name), data)

    def _store(self, kind: Kind, prediction_id: str, file: KeptFile, data: bytes) -> KeptFile:
        assert file.name is not None
        self.storage.put_bytes(object_name(kind, prediction_id, file.name), data)
        media_type = media.media_type(file.name.rpartition(".")[2])
        digest = hashlib.sha256(data).hexdigest()
        return KeptFile(file.pointer, file.source, file.name, media_type, len(data), digest)


def _name(wanted: Wanted) -> str:
    return object_name(wanted.kind, wanted.id, wanted.stem)
