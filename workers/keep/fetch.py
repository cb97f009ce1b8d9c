"""Bring one file here: from its host, from our own storage, or from Replicate's files; counted and hashed.

Replicate's OpenAPI document (2026-03-16) says that `GET /v1/files/{id}` describes a file, and that
`GET /v1/files/{id}/download` gives it to whoever has a signature. What the latter says to the token of the
owner is not known, nor whether the former ever gives the file itself: both are taken as they come, and bytes
are only kept if they fit the description.
"""

import asyncio
import errno
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from app.core import media
from app.core.answers import (
    Answer,
    Body,
    content_coding,
    declared_length,
    media_type,
    redirection,
    require_complete,
    require_no_error_page,
    too_large,
)
from app.core.errors import Permanent, StorageFailure, Transient
from app.core.heads import ODD, UNCLEAR
from app.core.hosts import HostRules, Target
from app.core.inputs import Uploads, description, upload_id
from app.core.links import LinkKeys, linked_object
from app.core.names import MANIFEST_NAME
from app.core.shares import Shares
from app.disk import floor_of
from app.replicate.guard import network_errors
from app.replicate.places import Places
from app.storage.store import Storage
from app.storage.threads import Threads

_DISK = Threads("disk", 8)
"""So that a slow disk holds up downloads only."""

HEAD_BYTES = 4096
NOT_FETCHED = frozenset({"disk_full", "disk_error", "disk_floor"})
"""Codes of a disk that did not take a download: nothing is there then."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Spill:
    """A file of ours: `path`, `size` (bytes), `sha256` (hex) and `head`, its first `HEAD_BYTES`."""

    def __init__(self, folder: Path, *, floor: int | None, expected: int) -> None:
        """Leave `floor` bytes free (as `floor_of` has it); `expected` bytes are said to come."""
        self.path = folder
        self.size = 0
        self.head = b""
        self._folder = folder
        self._floor = floor
        self._expected = expected
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The hash of what was written so far."""
        return self._digest.hexdigest()

    async def open(self) -> None:
        """Make the file; raise `StorageFailure` (`disk_full`, `disk_error`, `disk_floor`)."""
        await self._in_thread(self._open)

    async def write(self, block: bytes) -> None:
        """Append `block`; raise as `open` does."""
        await self._in_thread(lambda: self._write(block))

    async def close(self) -> None:
        """Close the file and leave it where it is; raise as `open` does."""
        await self._in_thread(self._close)

    async def remove(self) -> None:
        """Close and unlink. Never raises: what stays behind, the sweep takes."""
        await self._in_thread(self._remove)

    def _open(self) -> None:
        require_room(self._folder, self._floor, self._expected)
        descriptor, name = tempfile.mkstemp(dir=self._folder, prefix="fetch-", suffix=".part")
        self.path = Path(name)
        self._file = os.fdopen(descriptor, "wb")

    def _write(self, block: bytes) -> None:
        assert self._file is not None
        require_room(self._folder, self._floor, len(block))
        self._file.write(block)
        self._digest.update(block)
        self.size += len(block)
        self.head += block[: HEAD_BYTES - len(self.head)]

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _remove(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # closing writes what is buffered, which fails again on a full disk
                self._file.close()
            with suppress(OSError):
                self.path.unlink()

    async def _in_thread(self, work: Callable[[], None]) -> None:
        """Run `work` in a thread and stay until it ends, even when cancelled: it uses the file."""
        running = asyncio.ensure_future(_DISK.run(work))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            running.exception()  # taken, so that asyncio does not report it as forgotten
            raise
        except OSError as error:
            raise disk_error(error, self._folder) from error


@asynccontextmanager
async def spilled(folder: Path, *, floor: int | None, expected: int) -> AsyncIterator[Spill]:
    """Open a new file of mode 0600 in `folder`; it stays after success and is gone after anything else.

    Arguments as for `Spill`. Raises `StorageFailure` (`disk_full`, `disk_error`, `disk_floor`), which names
    the folder.
    """
    spill = Spill(folder, floor=floor, expected=expected)
    try:
        await spill.open()
        yield spill
        await spill.close()
    except BaseException:
        await spill.remove()
        raise


def require_room(folder: Path, floor: int | None, size: int = 0) -> None:
    """Raise `StorageFailure` (`disk_floor`) unless `floor` bytes stay free when `size` more are written.

    What waits in the spool, and Redis' log, must never meet a disk that downloads have filled.
    """
    try:
        free, least = shutil.disk_usage(folder).free, floor_of(folder, floor)
    except OSError as error:
        raise disk_error(error, folder) from None
    if free - size < least:
        raise StorageFailure(
            "disk_floor",
            f"only {free >> 20} MiB are free on the disk of {folder}, and {least >> 20} MiB must stay so "
            "(OUTKEEP_DISK_FLOOR): make room",
        )


def disk_error(error: OSError, folder: Path) -> StorageFailure:
    """Name what the disk said: `disk_full`, or `disk_error` for everything else, such as a permission."""
    reason = f"{folder}: {error.strerror or error}"
    if error.errno in _FULL:
        return StorageFailure("disk_full", f"no room for temporary files in {reason}")
    return StorageFailure("disk_error", f"temporary files cannot be written in {reason}")


STEP_BYTES = 64 * 1024
"""What must arrive within `stall_seconds`; with 30 s that is 2 kB a second."""
BLOCK_BYTES = 1024 * 1024
"""What is hashed and written at once."""

log = logging.getLogger("outkeep.persist")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file on our disk, which belongs to the caller now.

    `size` is in bytes, `sha256` in hex, `head` the first 4096 bytes; `content_type` is a bare media type as
    the host declared it; `url` is the address after all redirects.
    """

    path: Path
    size: int
    sha256: str
    head: bytes
    content_type: str | None
    url: str
    name: str = ""
    """What its owner calls it, where that is known: its extension may tell more than the URL's."""
    declared: str | None = None
    """The extension of the type that the host declared, if `media` knows it."""
    encoding: str | None = None
    """The `Content-Encoding` that its bytes still have."""


class Fetcher:
    """Downloads into `folder` through a guarded session; one for all jobs of a process."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        rules: HostRules,
        folder: Path,
        *,
        max_bytes: int,
        disk_floor: int | None,
        places: Places | None = None,
        stall_seconds: float = 30,
        max_redirects: int = 5,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`places` are those of the process, for each host and port; without, those of 256 slots."""
        self._session = session
        self._rules = rules
        self._folder = folder
        self._max_bytes = max_bytes
        self._disk_floor = disk_floor
        self._places = places or Places("the downloads", Shares.of(256))
        self._stall_seconds = stall_seconds
        self._max_redirects = max_redirects
        self._now = now

    async def fetch(
        self,
        url: str,
        *,
        timeout: float,  # noqa: ASYNC109 - its end is an error of ours
        uploads: Uploads | None = None,
        before: Body | None = None,
    ) -> Fetched:
        """Download `url`, requested exactly as given, in at most `timeout` seconds.

        With `uploads` the request carries their token, as long as it goes to their origin. `before` is the
        body that the download just before this one brought, if only a second one like it can be believed.

        Raises `Permanent` or `Transient` with the codes of `HostRules.check`, `answers`, `network_errors` and
        `disk_error`, `too_many_redirects` or `deadline`, and `Crowded` when a host has its share. No
        temporary file is left then, nor after a cancellation.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._follow(url, uploads, before)
        except TimeoutError:
            raise Transient("deadline", f"the download did not end within {timeout:.0f} s") from None

    async def _follow(self, url: str, uploads: Uploads | None, before: Body | None) -> Fetched:
        hop = url
        for _ in range(self._max_redirects + 1):
            # Decided anew for each hop, so that no redirect takes the token elsewhere.
            opened = uploads.target(hop) if uploads else None
            target = opened or self._rules.check(hop)
            headers = {"Authorization": f"Bearer {uploads.token}"} if uploads and opened else {}
            # For each hop, so that a slow host takes the places of none that leads to it.
            async with self._places.take(f"{target.host}:{target.port}"):
                response = await self._request(hop, target, headers)
                try:
                    answer = _answer(response, target.host)
                    following = redirection(answer, hop)
                    if following is None:
                        return await self._receive(response, answer, (url, hop), before)
                finally:
                    response.close()
            hop = following
        raise Permanent(
            "too_many_redirects", f"more than {self._max_redirects} redirects, the last to {target.host}"
        )

    async def _request(self, url: str, target: Target, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        with network_errors(target.host):
            async with asyncio.timeout(self._stall_seconds):
                response = await self._session.get(
                    _exact(url, target),
                    headers=headers,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None),
                )
        if odd := response.headers.get(ODD):
            log.info("an answer is odd, and clear all the same", extra={"host": target.host, "odd": odd})
        return response

    async def _receive(
        self, response: aiohttp.ClientResponse, answer: Answer, urls: tuple[str, str], before: Body | None
    ) -> Fetched:
        """Take the file; `urls` are the address that was asked for first, and the one that has answered."""
        host, headers = answer.host, response.headers
        connection = response.connection.protocol if response.connection else None
        declared = declared_length(answer, max_bytes=self._max_bytes, now=self._now())
        async with spilled(self._folder, floor=self._disk_floor, expected=declared or 0) as spill:
            await self._copy(response.content, spill, host)
            if connection is not None and _surplus(connection):
                raise Transient("body_too_long", f"{host} sent more than the length it announced")
            content_type = media_type(headers.get("Content-Type"))
            require_no_error_page(*urls, host=host, content_type=content_type, head=spill.head)
            require_complete(answer, (spill.size, spill.sha256), declared=declared, before=before)
        return Fetched(
            spill.path,
            spill.size,
            spill.sha256,
            spill.head,
            content_type,
            urls[-1],
            declared=media.declared(content_type, headers.get("Content-Disposition"), urls[-1]),
            encoding=content_coding(answer.content_encodings, spill.head),
        )

    async def _copy(self, content: aiohttp.StreamReader, spill: Spill, host: str) -> None:
        while block := await self._block(content, self._max_bytes + 1 - spill.size, host):
            if spill.size + len(block) > self._max_bytes:
                raise too_large(host, self._max_bytes)
            await spill.write(block)

    async def _block(self, content: aiohttp.StreamReader, room: int, host: str) -> bytes:
        """Read up to `BLOCK_BYTES`, never more than `room`; less means the end."""
        steps: list[bytes] = []
        missing = min(BLOCK_BYTES, room)
        while missing:
            wanted = min(STEP_BYTES, missing)
            with network_errors(host):
                step = await self._step(content, wanted)
            steps.append(step)
            missing = missing - wanted if len(step) == wanted else 0
        return b"".join(steps)

    async def _step(self, content: aiohttp.StreamReader, wanted: int) -> bytes:
        async with asyncio.timeout(self._stall_seconds):
            try:
                return await content.readexactly(wanted)
            except asyncio.IncompleteReadError as end:
                return end.partial


def _surplus(connection: ResponseHandler) -> bool:
    """Tell whether the parser choked on bytes after the body.

    That the host closed the connection is also an exception there, and no surplus.
    """
    return isinstance(connection.exception(), HttpProcessingError)


def _exact(url: str, target: Target) -> URL:
    """Wrap the text without touching its encoding, and see that it was understood as it was checked."""
    try:
        exact = URL(url, encoded=True)
        same = (exact.scheme, exact.port) == (target.scheme, target.port) and exact.user is None
    except ValueError:
        same = False
    if not same or (exact.raw_host or "").lower() != target.host:
        raise Permanent("url_malformed", f"the URL on {target.host} can be read in two ways")
    return exact


def _answer(response: aiohttp.ClientResponse, host: str) -> Answer:
    headers = response.headers
    return Answer(
        host=host,
        status=response.status,
        lengths=headers.getall("Content-Length", []),
        transfer_encodings=headers.getall("Transfer-Encoding", []),
        content_encodings=headers.getall("Content-Encoding", []),
        location=headers.get("Location"),
        retry_after=headers.get("Retry-After"),
        unclear=headers.get(UNCLEAR, ""),
    )


@dataclass(frozen=True)
class OwnFiles:
    """`base_url` is what our links begin with, `folder` for copies; `disk_floor` as `floor_of` has it."""

    storage: Storage
    base_url: str
    keys: LinkKeys
    folder: Path
    disk_floor: int | None
    clock: Callable[[], datetime]

    def name_of(self, url: str) -> str | None:
        """The object to which one of our links leads; None for any other URL, and for a link that is over."""
        return linked_object(url, self.base_url, self.keys, now=self.clock().timestamp())

    async def copy(self, name: str, url: str) -> Fetched:
        """A copy of an object, as if it had been downloaded from `url`.

        Raises `Permanent` (`not_found`), and what the storage and `spilled` raise.
        """
        stored = await asyncio.to_thread(self.storage.head, name)
        if stored is None:
            raise Permanent("not_found", f"{name} is not in the storage any more")
        async with spilled(self.folder, floor=self.disk_floor, expected=stored.size) as spill:
            async for piece in self.storage.stream(name, 0, stored.size):
                await spill.write(piece)
        folder, _, file = name.rpartition("/")
        encodings = await asyncio.to_thread(self.storage.encodings, f"{folder}/{MANIFEST_NAME}")
        return Fetched(
            spill.path, spill.size, spill.sha256, spill.head, None, url, encoding=encodings.get(file)
        )


MAX_DESCRIPTION = 1 << 20
"""Bytes up to which an answer may be the description of a file."""


@dataclass(frozen=True)
class InputFetcher:
    """`uploads` is None without a token; `base_url` is the API's."""

    fetcher: Fetcher
    base_url: str
    uploads: Uploads | None
    own: OwnFiles

    async def fetch(self, url: str, *, timeout: float, before: Body | None = None) -> Fetched:  # noqa: ASYNC109 - the fetcher's
        """Download an input in at most about `timeout` seconds.

        Raises what `Fetcher.fetch` raises, and `Permanent` (`token_missing`, `upload_mismatch`).
        """
        name, identity = self.own.name_of(url), upload_id(url, self.base_url)
        if name is None and identity is None:
            return await self.fetcher.fetch(url, timeout=timeout, before=before)
        try:
            async with asyncio.timeout(timeout):
                if name is not None:
                    return await self.own.copy(name, url)
                return await self._open(identity or "", timeout)
        except TimeoutError:
            raise Transient("deadline", f"the download did not end within {timeout:.0f} s") from None

    async def _open(self, identity: str, patience: float) -> Fetched:
        uploads = self.uploads
        if uploads is None:
            raise Permanent("token_missing", "files uploaded to Replicate open to REPLICATE_API_TOKEN only")
        url = uploads.url(identity)
        answer = await self.fetcher.fetch(url, timeout=patience, uploads=uploads)
        if answer.size > MAX_DESCRIPTION:
            return answer
        described = description(await asyncio.to_thread(answer.path.read_bytes), identity)
        if described is None:
            return answer
        answer.path.unlink()
        content = await self.fetcher.fetch(f"{url}/download", timeout=patience, uploads=uploads)
        if not described.fits(content.size, content.sha256):
            content.path.unlink()
            raise Permanent("upload_mismatch", "what the API gave is not the file that it described")
        return replace(content, name=described.name)
