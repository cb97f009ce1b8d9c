"""A moment as people give it to `--since`."""

from datetime import datetime, timedelta

import click

from app.core.errors import Permanent
from app.core.notation import duration


def parse_moment(text: str, now: datetime) -> datetime:
    """`1h` or `2d` before `now`, or an RFC 3339 time; raises `BadParameter`."""
    try:
        return now - timedelta(seconds=duration(text))
    except Permanent:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter("write 1h, 2d, or 2026-03-16T10:00:00Z", param_hint="--since") from None
    return moment if moment.tzinfo else moment.astimezone()
