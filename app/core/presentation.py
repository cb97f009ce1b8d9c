"""How a stored file is served over HTTP: its headers, and ranges of it."""

import re

from app.core import media
from app.core.errors import Rejected
from app.core.names import TEXT_NAME

_SCRIPTS = frozenset({"js", "mjs", "css", "wasm"})
"""What a page takes for a part of itself."""


def presentation(name: str) -> dict[str, str]:
    """`Content-Type`, and `Content-Disposition` for what could run in a browser; `name` may hold folders."""
    file_name = name.rpartition("/")[2]
    extension = file_name.rpartition(".")[2]
    # Of the text that we wrote, and of JSON as such, it is known; a model's text may be in any.
    charset = "; charset=utf-8" if file_name == TEXT_NAME or extension == "json" else ""
    # A page of ours could be led to run a script: with `nosniff` browsers run none of another type.
    media_type = "application/octet-stream" if extension in _SCRIPTS else media.media_type(extension)
    headers = {"Content-Type": media_type + charset}
    if not media.is_inline_safe(extension):
        headers["Content-Disposition"] = f'attachment; filename="{file_name}"'
    return headers


_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII | re.IGNORECASE)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The part that was asked for as `(start, end)`, `end` exclusive; None for the whole file.

    Several ranges, other units and malformed headers are ignored, as the RFC allows. Raises `Rejected`
    with status 416 when nothing of the file lies in the range.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        start, end = max(size - int(match[2]), 0), size
    else:
        start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    if start >= end:
        raise Rejected("range_not_satisfiable", f"the file has {size} bytes", status=416)
    return start, end
