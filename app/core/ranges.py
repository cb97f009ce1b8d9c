"""Byte ranges of a stored file (RFC 9110, section 14)."""

import re

from app.core.errors import Rejected

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
