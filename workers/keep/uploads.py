"""Fetch inputs: our own files, those that were uploaded to Replicate and open to our token, and all others.

Replicate's OpenAPI document (2026-03-16) says that `GET /v1/files/{id}` describes a file, and that
`GET /v1/files/{id}/download` gives it to whoever has a signature. What the latter says to the token of the
owner is not known, nor whether the former ever gives the file itself: both are taken as they come, and bytes
are only kept if they fit the description.
"""

import asyncio
from dataclasses import dataclass, replace

from app.core.answers import Body
from app.core.errors import Permanent, Transient
from app.core.inputs import Uploads, description, upload_id
from workers.keep.fetch import Fetched, Fetcher
from workers.keep.own_files import OwnFiles

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
