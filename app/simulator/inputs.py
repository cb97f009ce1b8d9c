"""Files that come in as inputs, fetched as a model does it: from here, or from wherever they lie."""

import asyncio
import base64
from mimetypes import guess_extension
from urllib.parse import unquote, urlsplit

import aiohttp

from app.simulator.files import FileHost
from app.simulator.models import Media
from app.simulator.uploads import Uploads

_TRIES = 6
_WAIT = 1.0
"""Seconds between two tries; models fetch their inputs with a few."""

_TIMEOUT = aiohttp.ClientTimeout(total=10)


class Inputs:
    """Over one session, for the simulator's own files and for those of others."""

    def __init__(self, files: FileHost, uploads: Uploads, session: aiohttp.ClientSession) -> None:
        self._files = files
        self._uploads = uploads
        self._session = session

    async def find(self, url: str) -> Media | None:
        """The file of a URL; None when it cannot be had."""
        if url.startswith("data:"):
            head, _, data = url.partition(",")
            kind = head[5:].partition(";")[0]
            return Media(f"out{guess_extension(kind) or ''}", base64.b64decode(data), kind)
        found = self._uploads.find_by_url(url) or self._files.find_by_url(url)
        if found is not None:
            return Media(found.name, found.content, found.content_type)
        return await self._fetch(url) if urlsplit(url).scheme in {"http", "https"} else None

    async def _fetch(self, url: str) -> Media | None:
        for number in range(_TRIES):
            await asyncio.sleep(_WAIT if number else 0)
            try:
                async with self._session.get(url, timeout=_TIMEOUT) as answer:
                    if answer.ok:
                        name = unquote(urlsplit(url).path.rpartition("/")[2])
                        return Media(name, await answer.read(), answer.content_type)
            except (aiohttp.ClientError, TimeoutError, OSError):
                continue
        return None
