"""The file host: contents by URL, as `replicate.delivery` serves them."""

import secrets
import string
from dataclasses import dataclass
from hashlib import md5
from mimetypes import guess_type
from urllib.parse import quote

from app.core.errors import Rejected

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
