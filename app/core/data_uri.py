"""`data:` URIs, as models and synchronous predictions put them into outputs, read as browsers read them.

Source: "data: URL processor" in WHATWG's Fetch standard, and "forgiving base64" in its Infra standard. Beyond
them base64 may be of the kind for URLs, and have any padding; and a `#` belongs to what is not base64, since
models put SVG there as it is.
"""

import base64
import binascii
import hashlib
from urllib.parse import unquote_to_bytes

from app.core.answers import media_type
from app.core.errors import Permanent

_DEFAULT_TYPE = "text/plain"
_SPACE = b" \t\r\n\f"
_FOR_URLS = bytes.maketrans(b"-_", b"+/")
_LINE_ENDS = {ord(sign): None for sign in "\t\r\n"}
_AT_ONCE = 1 << 16
"""Bytes of which the escapes are undone together: each takes forty times its size meanwhile."""


def decode_data_uri(uri: str) -> tuple[str, bytes]:
    """Give the media type in lower case, without parameters, and the bytes.

    What is no media type is `text/plain`, a percent sign that begins no escape stands for itself, base64 may
    be wrapped over lines; any other junk in base64 is an error. A megabyte takes a few milliseconds: decode
    large ones in a thread.
    Raises `Permanent` (`data_uri_malformed`).
    """
    head, comma, data = uri.partition(",")
    scheme, colon, kind = head.partition(":")
    if not comma or not colon or scheme.lower() != "data":
        raise _malformed("it does not have the form data:<type>,<data>")
    kind = kind.translate(_LINE_ENDS)
    essence = media_type(kind) or _DEFAULT_TYPE
    _, semicolon, last = kind.rpartition(";")
    content = _unescaped(data)
    if semicolon and last.strip().lower() == "base64":
        content = _from_base64(content)
    return essence, content


def source_of(uri: str) -> str:
    """What a manifest says of a `data:` URI: `data:<type>;sha256=<hex of its bytes>`."""
    try:
        essence, data = decode_data_uri(uri)
    except Permanent:
        essence, data = _DEFAULT_TYPE, uri.encode("utf-8", "surrogatepass")
    return f"data:{essence};sha256={hashlib.sha256(data).hexdigest()}"


def _unescaped(data: str) -> bytes:
    try:
        raw = data.encode()
    except UnicodeEncodeError:
        raise _malformed("it contains half of a surrogate pair") from None
    if b"%" not in raw:
        return raw
    unescaped, at = bytearray(), 0
    while at < len(raw):
        end = at + _AT_ONCE
        split = raw.rfind(b"%", end - 2, end) if end < len(raw) else -1
        end = end if split < 0 else split
        unescaped += unquote_to_bytes(raw[at:end])
        at = end
    return bytes(unescaped)


def _from_base64(data: bytes) -> bytes:
    packed = data.partition(b"#")[0].translate(_FOR_URLS, _SPACE).rstrip(b"=")
    packed += b"=" * (-len(packed) % 4)
    try:
        return base64.b64decode(packed, validate=True)
    except binascii.Error:
        raise _malformed("its data is not base64") from None


def _malformed(reason: str) -> Permanent:
    return Permanent("data_uri_malformed", f"the output holds a data: URI that cannot be read: {reason}")
