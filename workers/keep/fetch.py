"""Download one file through a guarded session: each hop checked, its body whole, nothing decoded."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

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
from app.core.errors import Permanent, Transient
from app.core.heads import ODD, UNCLEAR
from app.core.hosts import HostRules, Target
from app.core.inputs import Uploads
from app.core.shares import Shares
from app.replicate.guard import network_errors
from app.replicate.places import Places
from workers.keep.download import Download, Fetched, Memory

STEP_BYTES = 64 * 1024
"""What must arrive within `stall_seconds`; with 30 s that is 2 kB a second."""
log = logging.getLogger("outkeep.persist")


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
        memory: Memory | None = None,
        places: Places | None = None,
        stall_seconds: float = 30,
        max_redirects: int = 5,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`memory` and `places` (for each host and port) are those of the process; without, the usual."""
        self._session = session
        self._rules = rules
        self._folder = folder
        self._max_bytes = max_bytes
        self._disk_floor = disk_floor
        self._memory = memory or Memory()
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
        download = Download(self._folder, self._memory, floor=self._disk_floor, expected=declared)
        try:
            await download.open()
            await self._copy(response.content, download, host)
            _require_no_surplus(connection, host)
            content_type = media_type(headers.get("Content-Type"))
            require_no_error_page(*urls, host=host, content_type=content_type, head=download.head)
            await download.close()
            require_complete(answer, download.size, download.sha256, declared=declared, before=before)
        except BaseException:
            await download.discard()
            raise
        return download.fetched(
            content_type,
            urls[-1],
            declared=media.declared(content_type, headers.get("Content-Disposition"), urls[-1]),
            encoding=content_coding(answer.content_encodings, download.head),
        )

    async def _copy(self, content: aiohttp.StreamReader, download: Download, host: str) -> None:
        """Hand over the body block by block; the stall ends a block, not the wait for the disk."""
        loop, is_end = asyncio.get_running_loop(), False
        while not is_end:
            room = self._max_bytes + 1 - download.size
            wanted, size, step = min(download.block, room), 0, 0
            pieces: list[bytes] = []
            with network_errors(host):
                async with asyncio.timeout(self._stall_seconds) as patience:
                    while size < wanted and (piece := await content.read(wanted - size)):
                        pieces.append(piece)
                        size += len(piece)
                        if size - step >= STEP_BYTES:
                            patience.reschedule(loop.time() + self._stall_seconds)
                            step = size
            is_end = size < wanted
            if download.size + size > self._max_bytes:
                raise too_large(host, self._max_bytes)
            await download.add(pieces, size)


def _require_no_surplus(connection: ResponseHandler | None, host: str) -> None:
    """Raise `Transient` (`body_too_long`) if the parser choked on bytes after the body.

    That the host closed the connection is also an exception there, and no surplus.
    """
    if connection is not None and isinstance(connection.exception(), HttpProcessingError):
        raise Transient("body_too_long", f"{host} sent more than the length it announced")


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
