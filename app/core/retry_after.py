"""What a `Retry-After` header asks for (RFC 9110, section 10.2.3), and the dates of HTTP."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

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
