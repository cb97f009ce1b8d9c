"""What the answers of other servers mean: whole bodies, redirects, codings, `Retry-After` (RFC 9110, 10.2.3).

HTTP clients take too much for success: 204 and 206, and bodies that end with the connection, which may be
cut. Here only a plain 200 with one length, or in chunks, is a file at once; what is empty, or ends with the
connection, is one when it comes twice. Nothing is decoded.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

from app.core.content import detect
from app.core.errors import Permanent, Transient
from app.core.media import is_never_a_page

_SECONDS = re.compile(r"[0-9]+", re.ASCII)
_LONGEST = 1e15
"""More than any wait; keeps the number finite when somebody sends 400 digits."""


def retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds to wait from `now` (Unix seconds), at least 0; None when nothing sensible was asked.

    Large values are kept: how long is too long is the policy's decision.
    """
    text = (value or "").strip(" \t")
    if _SECONDS.fullmatch(text):
        return min(float(text), _LONGEST)
    moment = http_date(text)
    return None if moment is None else max(0.0, moment.timestamp() - now)


def http_date(value: str | None) -> datetime | None:
    """The moment that a date of HTTP names; None for anything else."""
    text = (value or "").strip(" \t")
    if not text[:1].isalpha():
        return None
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OK, _FIRST_SERVER_ERROR = 200, 500
_LENGTH = re.compile(r"[0-9]{1,19}", re.ASCII)
_TYPE = re.compile(r"[!#$&^_.+a-z0-9-]{1,64}/[!#$&^_.+a-z0-9-]{1,64}", re.ASCII)
_UNSENDABLE = re.compile("[ \t\udc80-\udcff]+")
"""Blanks, and bytes that are not UTF-8 as aiohttp decodes them."""
_PAGES = frozenset({"text/html", "application/xhtml+xml"})
_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:(?><!--.*?-->)\s*)*+"
    rb"<(?:!doctype\s+html|html|head|body|title|meta|h1|center|script)[\s>]",
    re.IGNORECASE | re.DOTALL,
)


_CODINGS: Final[dict[str, bytes | None]] = {
    "gzip": b"\x1f\x8b",
    "compress": b"\x1f\x9d",
    "zstd": b"\x28\xb5\x2f\xfd",
    "deflate": None,
    "br": None,
}
"""Content codings that browsers and IANA know, and how such bytes begin, where that is always the same."""

_MOST_CODINGS = 8

Body = tuple[int, str]
"""The size of a body in bytes and its SHA-256 in hex."""


class Unconfirmed(Transient):
    """Nothing tells whether `body` is all there was: it is kept when the next download brings it again."""

    def __init__(self, code: str, message: str, body: Body) -> None:
        super().__init__(code, message)
        self.body = body


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
    unclear: str = ""
    """Why nobody can tell where its body ends, if `heads` has found that."""


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
    """Give the length of the file that follows, or None when its end will tell.

    `now` is in Unix seconds. Raises `Permanent` (`not_found`, `gone`, `too_large`) or `Transient`
    (`forbidden`, `busy`, `server_error`, `status_unexpected`, `answer_malformed`, `length_unclear`).
    """
    if answer.status != _OK:
        raise _refusal(answer, now=now)
    if answer.unclear:
        raise Transient("answer_malformed", f"{answer.host} sends {answer.unclear}")
    if answer.transfer_encodings:
        _require_chunked(answer)
        return None
    if not answer.lengths:
        return None
    if len(answer.lengths) > 1 or not _LENGTH.fullmatch(answer.lengths[0].strip()):
        raise Transient("length_unclear", f"{answer.host} does not send exactly one sensible length")
    length = int(answer.lengths[0])
    if length > max_bytes:
        raise too_large(answer.host, max_bytes)
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


def require_complete(
    answer: Answer, received: int, sha256: Callable[[], str], *, declared: int | None, before: Body | None
) -> None:
    """Raise `Transient` unless the bytes `received` are all of the file, as far as anybody can tell.

    `sha256` gives their hash in hex, which is rarely asked for. `declared` is what `declared_length` gave,
    `before` what the download just before this one brought. Codes: `body_incomplete`, also as `Unconfirmed`
    where only the end of the connection ended the body, and `body_empty`.
    """
    host = answer.host
    if declared is not None and declared != received:
        raise Transient("body_incomplete", f"{host} announced {declared} bytes and sent {received}")
    ends_by_itself = bool(answer.lengths or answer.transfer_encodings)
    if not received and not ends_by_itself:
        raise Transient("body_empty", f"{host} sent nothing, and does not say that the file is empty")
    if received and ends_by_itself:
        return
    body = (received, sha256())
    if body == before:
        return
    if not received:
        raise Unconfirmed("body_empty", f"{host} sent an empty file, kept if it is empty once more", body)
    raise Unconfirmed(
        "body_incomplete",
        f"{host} does not say how long the file is; these {received} bytes are kept if they come once more",
        body,
    )


def codings(values: Iterable[str]) -> list[str]:
    """The content codings among the words of `Content-Encoding` headers; all other words mean nothing."""
    words = [word.strip().lower().removeprefix("x-") for value in values for word in value.split(",")]
    return [word for word in words if word in _CODINGS]


def content_coding(values: Sequence[str], head: bytes) -> str | None:
    """The `Content-Encoding` that a body which begins with `head` still has, None for none.

    Stores replay whatever they were given with an upload (`aws-chunked`, `UTF-8`, `gzip` for plain bytes):
    words that are no coding mean nothing, nor does one that the bytes belie.
    """
    named = codings(values)
    if not 0 < len(named) <= _MOST_CODINGS:  # it is kept for each file, so that it must not be long
        return None
    beginning = _CODINGS[named[-1]]
    belied = detect(head) is not None if beginning is None else not head.startswith(beginning)
    return None if belied else ", ".join(named)


def require_no_error_page(*urls: str, host: str, content_type: str | None, head: bytes) -> None:
    """Raise `Transient` (`html_instead`) for a page served in the place of a named picture, film, archive.

    `urls` are the address that was asked for and the one that answered, `content_type` comes from
    `media_type`; `head` holds the first bytes, 512 or more.
    """
    if content_type in _PAGES and any(map(is_never_a_page, urls)) and _HTML.match(head):
        raise Transient("html_instead", f"{host} sent a web page in place of the file")


def media_type(header: str | None) -> str | None:
    """Give the media type of a `Content-Type` in lower case, without parameters; None when it is not one."""
    essence = (header or "").partition(";")[0].strip().lower()
    return essence if _TYPE.fullmatch(essence) else None
