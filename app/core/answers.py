"""What the answer of a file host means: a file of a certain length, another address, or an error.

HTTP clients take too much for success: 204 and 206, compressed bodies, bodies that end with the connection.
Here only a plain 200 with one length, or in chunks, is a file.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from app.core.errors import Permanent, Transient
from app.core.retry_after import retry_after

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OK, _FIRST_SERVER_ERROR = 200, 500
_LENGTH = re.compile(r"[0-9]{1,19}", re.ASCII)
_TYPE = re.compile(r"[!#$&^_.+a-z0-9-]{1,64}/[!#$&^_.+a-z0-9-]{1,64}", re.ASCII)
_UNSENDABLE = re.compile("[ \t\udc80-\udcff]+")
"""Blanks, and bytes that are not UTF-8 as aiohttp decodes them."""
_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:(?><!--.*?-->)\s*)*+"
    rb"<(?:!doctype\s+html|html|head|body|title|meta|h1|center|script)[\s>]",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and the headers that matter, each with every value that was sent. `host` is for messages."""

    host: str
    status: int
    lengths: Sequence[str] = ()
    transfer_encodings: Sequence[str] = ()
    content_encodings: Sequence[str] = ()
    location: str | None = None
    retry_after: str | None = None


def redirection(answer: Answer, url: str) -> str | None:
    """Give the absolute address to which the answer for `url` points, its encoding untouched, or None.

    Only what a request line cannot hold is encoded: blanks, and bytes that are not UTF-8. Raises `Permanent`
    (`redirect_refused`) for a step from https down to http and for an unreadable address.
    """
    location = (answer.location or "").strip(" \t")
    if answer.status not in _REDIRECTS or not location:
        return None
    try:
        following = urljoin(url, _UNSENDABLE.sub(_encoded, location))
        downgrade = urlsplit(url).scheme == "https" and urlsplit(following).scheme == "http"
    except ValueError:
        raise Permanent("redirect_refused", f"{answer.host} redirects to an unreadable address") from None
    if downgrade:
        raise Permanent("redirect_refused", f"{answer.host} redirects from https to http")
    return following


def _encoded(found: re.Match[str]) -> str:
    return quote(found[0].encode(errors="surrogateescape"))


def declared_length(answer: Answer, *, max_bytes: int, now: float) -> int | None:
    """Give the length of the file that follows, or None when it comes in chunks.

    `now` is in Unix seconds. Raises `Permanent` (`not_found`, `gone`, `too_large`) or `Transient`
    (`forbidden`, `busy`, `server_error`, `status_unexpected`, `content_encoded`, `length_unclear`,
    `body_incomplete`, `body_empty`).
    """
    if answer.status != _OK:
        raise _refusal(answer, now=now)
    if any(text.strip().lower() not in {"", "identity"} for text in answer.content_encodings):
        raise Transient("content_encoded", f"{answer.host} sends a compressed body, which was not asked for")
    if answer.transfer_encodings:
        _require_chunked(answer)
        return None
    if not answer.lengths:
        raise Transient("body_incomplete", f"{answer.host} does not say how long the file is")
    if len(answer.lengths) > 1 or not _LENGTH.fullmatch(answer.lengths[0].strip()):
        raise Transient("length_unclear", f"{answer.host} does not send exactly one sensible length")
    length = int(answer.lengths[0])
    if length > max_bytes:
        raise too_large(answer.host, max_bytes)
    if length == 0:
        raise empty(answer.host)
    return length


def _require_chunked(answer: Answer) -> None:
    if answer.lengths or [text.strip().lower() for text in answer.transfer_encodings] != ["chunked"]:
        raise Transient(
            "length_unclear", f"{answer.host} sends chunks in a way that leaves the length unclear"
        )


def _refusal(answer: Answer, *, now: float) -> Permanent | Transient:
    said = f"{answer.host} answered {answer.status}"
    match answer.status:
        case 404:
            return Permanent("not_found", f"{said}: the file is not there")
        case 410:
            return Permanent("gone", f"{said}: the file was removed")
        case 401 | 403:
            return Transient("forbidden", f"{said}: it does not let us read the file")
        case 429:
            return Transient("busy", said, retry_after=retry_after(answer.retry_after, now=now))
        case status if status >= _FIRST_SERVER_ERROR:
            return Transient("server_error", said, retry_after=retry_after(answer.retry_after, now=now))
        case _:
            return Transient("status_unexpected", f"{said}, and only 200 brings a file")


def too_large(host: str, max_bytes: int) -> Permanent:
    """Make the error for a file over the cap, declared or counted."""
    return Permanent("too_large", f"{host} sends more than {max_bytes} bytes, the limit of OUTKEEP_MAX_FILE")


def empty(host: str) -> Transient:
    """Make the error for a file without a byte."""
    return Transient("body_empty", f"{host} sent an empty file")


def require_complete(host: str, *, declared: int | None, received: int) -> None:
    """Compare what came (bytes) with what was announced; raise `Transient` for an empty or partial body."""
    if declared is not None and declared != received:
        raise Transient("body_incomplete", f"{host} announced {declared} bytes and sent {received}")
    if received == 0:
        raise empty(host)


def require_no_error_page(url: str, *, host: str, content_type: str | None, head: bytes) -> None:
    """Raise `Transient` (`html_instead`) for a page served with 200 in place of a file.

    `content_type` comes from `media_type`; `head` holds the first bytes, 512 or more.
    """
    named_html = urlsplit(url).path.lower().endswith((".html", ".htm"))
    if content_type == "text/html" and not named_html and _HTML.match(head):
        raise Transient("html_instead", f"{host} sent a web page in place of the file")


def media_type(header: str | None) -> str | None:
    """Give the media type of a `Content-Type` in lower case, without parameters; None when it is not one."""
    essence = (header or "").partition(";")[0].strip().lower()
    return essence if _TYPE.fullmatch(essence) else None
