"""Files of the simulator: outputs as `replicate.delivery` serves them, uploads, inputs that are fetched."""

import asyncio
import base64
import re
import secrets
import string
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import md5, sha256
from mimetypes import guess_extension, guess_type
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import aiohttp

from app.core.errors import Rejected
from app.simulator.models import Media
from app.simulator.state import stamp

FOLDER = "xezq"
"""The four letters of every path here."""

_LETTERS = string.ascii_letters + string.digits


@dataclass(slots=True)
class HostedFile:
    """A file and how often it was asked for."""

    name: str
    content: bytes
    content_type: str
    etag: str
    downloads: int = 0


class FileHost:
    """Files by their id; `base_url` has no trailing slash."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._files: dict[str, HostedFile] = {}

    def add(self, name: str, content: bytes, content_type: str | None = None) -> str:
        """Keep a file and return its URL; `name` is percent-encoded there, its type is guessed."""
        identity = "".join(secrets.choice(_LETTERS) for _ in range(44))
        kind = content_type or guess_type(name)[0] or "application/octet-stream"
        etag = f'"{md5(content, usedforsecurity=False).hexdigest()}"'
        self._files[identity] = HostedFile(name, content, kind, etag)
        return f"{self._base_url}/{FOLDER}/{identity}/{quote(name, safe='')}"

    def find(self, identity: str, name: str) -> HostedFile:
        """The file of a path, by its decoded name. Raises `Rejected` (404)."""
        found = self._files.get(identity)
        if found is None or found.name != name:
            raise Rejected("not_found", "The specified key does not exist.", status=404)
        return found

    def find_by_url(self, url: str) -> HostedFile | None:
        """The file that lies at a URL."""
        if not url.startswith(f"{self._base_url}/{FOLDER}/"):
            return None
        return self._files.get(self._identity(url))

    def downloads(self, url: str) -> int:
        """How often the file of a URL was asked for with GET. Raises `Rejected` (404)."""
        return self._files_of(url).downloads

    def remove(self, url: str) -> None:
        """Forget a file; a URL of another host or of no file is none of our business."""
        if url.startswith(f"{self._base_url}/{FOLDER}/"):
            self._files.pop(self._identity(url), None)

    def _files_of(self, url: str) -> HostedFile:
        found = self._files.get(self._identity(url))
        if found is None:
            raise Rejected("not_found", f"No file has the URL {url}", status=404)
        return found

    @staticmethod
    def _identity(url: str) -> str:
        return url.rsplit("/", 2)[1]


_BOUNDARY = re.compile(r'multipart/form-data;.*boundary="?([^";]+)"?', re.IGNORECASE)
_FILENAME = re.compile(rb'filename="([^"]*)"')
_CONTENT_TYPE = re.compile(rb"^content-type:\s*(\S+)", re.IGNORECASE | re.MULTILINE)
_LIFE = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Upload:
    """The part named `content` of an upload."""

    name: str
    content_type: str
    content: bytes


def read_upload(content_type: str, body: bytes) -> Upload:
    """The file in a multipart body, byte for byte. Raises `Rejected` (422)."""
    boundary = _BOUNDARY.match(content_type)
    for part in body.split(b"--" + boundary[1].encode())[1:-1] if boundary else ():
        head, _, content = part.partition(b"\r\n\r\n")
        if b'name="content"' in head:
            name = _FILENAME.search(head)
            kind = _CONTENT_TYPE.search(head)
            return Upload(
                name=name[1].decode(errors="replace") if name else "file",
                content_type=kind[1].decode(errors="replace") if kind else "application/octet-stream",
                content=content.removesuffix(b"\r\n"),
            )
    raise Rejected("upload", "The body must be multipart/form-data with a part named content.", status=422)


def file_object(upload: Upload, now: datetime, base_url: str) -> dict[str, Any]:
    """The JSON object of an uploaded file, with a new id."""
    identity = "".join(secrets.choice(_LETTERS) for _ in range(48))
    md5sum = md5(upload.content, usedforsecurity=False).hexdigest()
    return {
        "id": identity,
        "name": upload.name,
        "content_type": upload.content_type,
        "size": len(upload.content),
        "etag": md5sum,
        "checksums": {"md5": md5sum, "sha256": sha256(upload.content).hexdigest()},
        "metadata": {},
        "created_at": stamp(now),
        "expires_at": stamp(now + _LIFE),
        "urls": {"get": f"{base_url}/v1/files/{identity}"},
    }


class Uploads:
    """Uploaded files by their id, the newest last."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._kept: dict[str, tuple[dict[str, Any], Upload]] = {}

    def add(self, upload: Upload, now: datetime) -> dict[str, Any]:
        """Keep an upload; its file object."""
        described = file_object(upload, now, self._base_url)
        self._kept[described["id"]] = (described, upload)
        return described

    def find(self, identity: str) -> tuple[dict[str, Any], Upload]:
        """File object and content of an id. Raises `Rejected` (404)."""
        if identity not in self._kept:
            raise Rejected("not_found", "The requested resource could not be found.", status=404)
        return self._kept[identity]

    def find_by_url(self, url: str) -> Upload | None:
        """The upload that lies at a URL."""
        _, upload = self._kept.get(url.removeprefix(f"{self._base_url}/v1/files/"), (None, None))
        return upload

    def newest_first(self) -> Iterator[dict[str, Any]]:
        """All file objects."""
        return (described for described, _ in reversed(self._kept.values()))

    def remove(self, identity: str) -> None:
        """Forget one. Raises `Rejected` (404)."""
        self.find(identity)
        del self._kept[identity]


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
