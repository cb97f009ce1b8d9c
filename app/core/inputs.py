"""Input files: which there are, and which of them Replicate keeps for us behind our token."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from app.core.hosts import Origin, Target, parse_origin
from app.core.names import ID, input_key
from app.core.outputs import OutputFile, Pointers, find_whole

POINTER = "/input"

_REPLICATE = "https://api.replicate.com"
_UPLOADS = "/v1/files/"


@dataclass(frozen=True)
class InputFile:
    """A file of an input: number `index` of those whose top-level key is written `key` in names."""

    place: OutputFile
    key: str
    index: int


def find_inputs(value: Any) -> Iterator[InputFile]:
    """All files in the input of a prediction, in order of appearance, wherever they lie.

    A URL within a prompt or another text is no file.
    """
    seen: Counter[str] = Counter()
    pointers = Pointers(POINTER)
    for spot in find_whole(value):
        key = input_key(str(spot.path[0])) if spot.path else "_"
        yield InputFile(OutputFile(pointers.spell(spot.path), spot.source), key, seen[key])
        seen[key] += 1


@dataclass(frozen=True)
class Uploads:
    """Where the files lie that were uploaded to Replicate as inputs, and the token that opens them."""

    base_url: str
    """Of the API, without a slash at the end."""
    origin: Origin
    token: str = field(repr=False)

    @classmethod
    def at(cls, base_url: str, token: str) -> Self:
        """Those of the API at `base_url`."""
        return cls(base_url, parse_origin(base_url), token)

    def url(self, identity: str) -> str:
        """Where a file is asked for."""
        return f"{self.base_url}{_UPLOADS}{identity}"

    def target(self, url: str) -> Target | None:
        """Where a request for `url` goes if it may carry the token: only to the origin the operator named.

        Raises what `parse_origin` raises.
        """
        origin = parse_origin(url)
        if origin != self.origin:
            return None
        return Target(origin.scheme, origin.host, origin.port, trusted=True)


def upload_id(url: str, base_url: str) -> str | None:
    """The id of an uploaded file, by its URL; None for every other URL.

    Behind a gateway at `base_url` the API may name its own origin all the same.
    """
    for origin in (base_url, _REPLICATE):
        identity = url.removeprefix(f"{origin}{_UPLOADS}")
        if identity != url and ID.fullmatch(identity):
            return identity
    return None


@dataclass(frozen=True)
class Description:
    """What Replicate says of an uploaded file; `size` in bytes, `sha256` in hex."""

    name: str
    size: int | None
    sha256: str | None

    def fits(self, size: int, sha256: str) -> bool:
        """Whether a file is the one that was described, as far as that tells."""
        return self.size in {None, size} and self.sha256 in {None, sha256}


def description(body: bytes, identity: str) -> Description | None:
    """The file object in an answer about upload `identity`; None when the answer is the file itself."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("id") != identity or not isinstance(found.get("urls"), dict):
        return None
    checksums = found.get("checksums")
    sha256 = checksums.get("sha256") if isinstance(checksums, dict) else None
    name, size = found.get("name"), found.get("size")
    return Description(
        name if isinstance(name, str) else "",
        size if isinstance(size, int) else None,
        sha256 if isinstance(sha256, str) else None,
    )
