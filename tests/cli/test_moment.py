"""Moments, as people give them to `--since`."""

from datetime import UTC, datetime, timedelta

import click
import pytest

from app.cli.terminal import parse_moment

NOW = datetime(2026, 3, 16, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("1h", timedelta(hours=1)),
        ("36500d", timedelta(days=36500)),
        ("2026-03-16T13:00:00+02:00", timedelta(hours=1)),
    ],
)
def test_a_moment_is_so_long_ago_or_a_time_of_any_zone(text: str, ago: timedelta) -> None:
    assert parse_moment(text, NOW) == NOW - ago


@pytest.mark.parametrize(
    "text",
    [
        "0001-01-01",
        "0001-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "9999-12-31",
        "1926-01-01",
        "36501d",
        "yesterday",
        "",
    ],
)
def test_what_no_calendar_can_reckon_with_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_moment(text, NOW)
