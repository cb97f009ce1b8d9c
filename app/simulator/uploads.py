"""Input files: the multipart body of `POST /v1/files`, the file object that answers it, and what is kept."""

import re
import secrets
import string
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import md5, sha256
from typing import Any

from app.core.errors import Rejected
from app.simulator.state import stamp

_LETTERS = string.ascii_letters + string.digits
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
