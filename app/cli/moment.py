"""A moment as people give it to `--since`."""

from datetime import UTC, datetime, timedelta

import click

from app.core.errors import Permanent
from app.core.notation import duration

_FARTHEST = timedelta(days=100 * 365)


def parse_moment(text: str, now: datetime) -> datetime:
    """`1h` or `2d` before `now`, or an RFC 3339 time, no more than a century away; raises `BadParameter`."""
    try:
        return now - timedelta(seconds=duration(text))
    except Permanent:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _refused("write 1h, 2d, or 2026-03-16T10:00:00Z") from None
    try:
        moment = moment.astimezone(UTC)
        is_near = abs(now - moment) <= _FARTHEST
    except (ValueError, OverflowError):  # an offset that leads out of the calendar
        is_near = False
    if not is_near:
        raise _refused("that is more than a hundred years away")
    return moment


def _refused(reason: str) -> click.BadParameter:
    return click.BadParameter(reason, param_hint="--since")
