"""`data:` URIs (RFC 2397), as models and synchronous predictions put them into outputs."""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from app.core.answers import media_type
from app.core.errors import Permanent

_DEFAULT_TYPE = "text/plain"
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_SPACE = b" \t\r\n\f"
_AT_ONCE = 1 << 16
"""Bytes of which the escapes are undone together: each takes forty times its size meanwhile."""


def decode_data_uri(uri: str) -> tuple[str, bytes]:
    """Give the media type in lower case, without parameters, and the bytes.

    Base64 may lack its padding and be wrapped over lines, as browsers accept it; any other junk is an error.
    A megabyte takes a few milliseconds: decode large ones in a thread.
    Raises `Permanent` (`data_uri_malformed`).
    """
    head, comma, data = uri.partition(",")
    scheme, colon, kind = head.partition(":")
    if not comma or not colon or scheme.lower() != "data":
        raise _malformed("it does not have the form data:<type>,<data>")
    declared, _, parameters = kind.partition(";")
    essence = media_type(declared) if declared else _DEFAULT_TYPE
    if essence is None:
        raise _malformed("its media type is not one")
    content = _unescaped(data)
    if parameters.rpartition(";")[2].strip().lower() == "base64":
        content = _from_base64(content)
    return essence, content


def _unescaped(data: str) -> bytes:
    try:
        raw = data.encode()
    except UnicodeEncodeError:
        raise _malformed("it contains half of a surrogate pair") from None
    if b"%" not in raw:
        return raw
    if _BAD_ESCAPE.search(raw):
        raise _malformed("a percent sign is not followed by two hexadecimal digits")
    unescaped, at = bytearray(), 0
    while at < len(raw):
        end = at + _AT_ONCE
        split = raw.rfind(b"%", end - 2, end) if end < len(raw) else -1
        end = end if split < 0 else split
        unescaped += unquote_to_bytes(raw[at:end])
        at = end
    return bytes(unescaped)


def _from_base64(data: bytes) -> bytes:
    packed = data.translate(None, _SPACE)
    if not packed.endswith(b"="):
        packed += b"=" * (-len(packed) % 4)
    try:
        return base64.b64decode(packed, validate=True)
    except binascii.Error:
        raise _malformed("its data is not base64") from None


def _malformed(reason: str) -> Permanent:
    return Permanent("data_uri_malformed", f"the output holds a data: URI that cannot be read: {reason}")
