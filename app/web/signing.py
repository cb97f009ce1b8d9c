"""What we sign for browsers, and read back: sessions, links that sign in, cursors, albums."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from app.core.links import derive

LINK_LIFE = 3600
"""Seconds for which a link signs somebody in, once."""

SIGN_IN = "/sign-in"
ALBUM = "/album"
_LINKS = b"outkeep sign-in links v1"


@dataclass(frozen=True)
class Signer:
    """Signs for one purpose with keys derived from every secret key: the first signs, each verifies."""

    secret_keys: Sequence[bytes] = field(repr=False)
    purpose: bytes

    def seal(self, content: Mapping[str, Any]) -> str:
        """A text for URLs and cookies; whoever has it can read `content`, and nobody can change it."""
        return str(self._serializer().dumps(content))

    def unseal(self, text: str) -> Mapping[str, Any]:
        """The content of a text of ours; empty for any other. Never raises."""
        from itsdangerous import BadData  # noqa: PLC0415  only pages need it

        try:
            found = self._serializer().loads(text)
        except BadData:
            return {}
        return found if isinstance(found, dict) else {}

    def _serializer(self) -> Any:
        from itsdangerous import URLSafeSerializer  # noqa: PLC0415

        keys = [derive(key, self.purpose) for key in reversed(self.secret_keys)]
        return URLSafeSerializer(keys, signer_kwargs={"digest_method": hashlib.sha256})


def link_signer(secret_keys: Sequence[bytes]) -> Signer:
    """What signs and reads links that sign somebody in."""
    return Signer(secret_keys, _LINKS)


def album_signer(secret_keys: Sequence[bytes]) -> Signer:
    """What signs and reads the links of albums."""
    return Signer(secret_keys, b"outkeep albums v1")


def album_url(
    base_url: str, secret_keys: Sequence[bytes], album_id: str, *, until: datetime, prompts: bool
) -> str:
    """The link to an album; `prompts` says whether it shows those."""
    content = {"album": album_id, "until": int(until.timestamp()), "prompts": prompts}
    return f"{base_url}{ALBUM}/{album_signer(secret_keys).seal(content)}"


def sign_in_url(base_url: str, secret_keys: Sequence[bytes], *, now: float) -> str:
    """A link that signs somebody in, once and within `LINK_LIFE` of `now` (Unix seconds)."""
    content = {"until": int(now) + LINK_LIFE, "once": secrets.token_urlsafe(12)}
    return f"{base_url}{SIGN_IN}?link={quote(link_signer(secret_keys).seal(content))}"
