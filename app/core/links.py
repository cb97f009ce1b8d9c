"""Links to stored files that carry their own permission, and the keys we derive for each purpose."""

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.core.errors import Permanent, Rejected
from app.core.names import Kind, object_name

MIN_KEY_BYTES = 32

LIFE = 8 * 86400
"""Seconds for which a link that we make is good: seven days are promised."""

_KINDS = {kind.folder: kind for kind in Kind}
_LINK = re.compile(
    rf"(?P<path>/files/(?P<folder>{'|'.join(_KINDS)})/(?P<id>[^/?#]+)/(?P<name>[^/?#]+))"
    r"\?expires=(?P<expires>[0-9]{1,12})&signature=(?P<signature>[A-Za-z0-9_-]+)"
)


@dataclass(frozen=True)
class LinkKeys:
    """Keys that sign links: the first signs, each verifies (rotation)."""

    keys: tuple[bytes, ...] = field(repr=False)


def parse_secret_keys(text: str) -> tuple[bytes, ...]:
    """Keys separated by spaces, each of 32 bytes or more; raises `Permanent` otherwise."""
    keys = tuple(word.encode() for word in text.split())
    if not keys:
        raise Permanent(
            "bad_key",
            "it is empty; put 32 random bytes or more there, for example from `openssl rand -hex 32`",
        )
    for number, key in enumerate(keys, 1):
        if len(key) < MIN_KEY_BYTES:
            raise Permanent(
                "bad_key", f"key {number} has {len(key)} bytes; {MIN_KEY_BYTES} or more are needed"
            )
    return keys


def link_keys(secret_keys: Sequence[bytes]) -> LinkKeys:
    """The keys for links, derived so that no other purpose shares them."""
    return LinkKeys(tuple(derive(key, b"outkeep links v1") for key in secret_keys))


def fingerprint(secret_key: bytes) -> str:
    """A word that tells two keys apart and says nothing about them."""
    return derive(secret_key, b"outkeep fingerprint v1")[:8].hex()


def file_path(kind: Kind, prediction_id: str, name: str) -> str:
    """The path of a stored file on our server."""
    return f"/files/{kind.folder}/{quote(prediction_id)}/{quote(name)}"


def sign_path(path: str, expires: int, keys: LinkKeys) -> str:
    """`path` with `expires` (seconds since 1970) and `signature` in its query."""
    return f"{path}?expires={expires}&signature={_signature(path, str(expires), keys.keys[0])}"


def signed_url(
    base_url: str, kind: Kind, prediction_id: str, name: str, keys: LinkKeys, *, now: float
) -> str:
    """A link to a stored file that is good for `LIFE` from `now` (seconds since 1970)."""
    return base_url + sign_path(file_path(kind, prediction_id, name), int(now) + LIFE, keys)


def check_path(path: str, expires: str, signature: str, keys: LinkKeys, *, now: float) -> None:
    """Accept a signed path, or raise `Rejected` with status 403."""
    given = signature.encode("utf-8", "surrogatepass")
    matches = [hmac.compare_digest(_signature(path, expires, key).encode(), given) for key in keys.keys]
    if not any(matches):
        raise Rejected("link_refused", "the signature of this link is not ours", status=403)
    if int(expires) < now:
        raise Rejected("link_expired", "this link has expired; replay the event for a fresh one", status=403)


def linked_object(url: str, base_url: str, keys: LinkKeys, *, now: float) -> str | None:
    """The name of the object to which a link of ours leads; None for any other URL, or one that is over."""
    match = _LINK.fullmatch(url.removeprefix(base_url)) if url.startswith(base_url) else None
    if match is None:
        return None
    try:
        check_path(match["path"], match["expires"], match["signature"], keys, now=now)
    except Rejected:
        return None
    return object_name(_KINDS[match["folder"]], unquote(match["id"]), unquote(match["name"]))


def _signature(path: str, expires: str, key: bytes) -> str:
    digest = hmac.digest(key, f"{path}\n{expires}".encode("utf-8", "surrogatepass"), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def derive(secret_key: bytes, purpose: bytes) -> bytes:
    """A key of 32 bytes for one purpose, from which neither the secret key nor another one can be told."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret_key)
