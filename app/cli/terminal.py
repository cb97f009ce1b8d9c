"""What is printed on a terminal, and read from a command line: text, tables, progress, times."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import TextIOWrapper
from typing import Self

import click

from app.core.errors import Permanent
from app.core.notation import duration

_EVERY = 50
"""Steps between two changes of what a terminal shows."""


def printable(text: str) -> str:
    """`text` without what could move the cursor, recolour or reorder: others wrote much of what we show."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def escape_what_does_not_fit() -> None:
    """Let no sign that the terminal or the pipe has no code for end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str, *, err: bool = False) -> None:
    """Print one line."""
    click.echo(printable(text), file=sys.stderr if err else sys.stdout)


def flow(text: str) -> None:
    """Print a piece of a longer text: its lines stay, and whatever could steer the terminal does not."""
    kept = "".join(letter if letter in "\n\t" else printable(letter) for letter in text)
    click.echo(kept, nl=False, file=sys.stdout)


def table(header: list[str], rows: list[list[str]]) -> None:
    """Print rows under a header, in columns."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class Progress:
    """A context that shows on a terminal what is done: as a bar when `many` counts how much there is."""

    def __init__(self, verb: str, many: Callable[[], int] | None = None) -> None:
        self._verb = verb
        self._shown = sys.stderr.isatty()
        self._count = 0
        self._bar = (
            click.progressbar(
                length=many(), label=verb, show_pos=True, file=sys.stderr, update_min_steps=_EVERY
            )
            if self._shown and many is not None
            else None
        )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        else:
            self.pause()

    def step(self) -> None:
        """One more."""
        self._count += 1
        if self._bar is not None:
            self._bar.update(1)
        elif self._shown and self._count % _EVERY == 0:
            click.echo(f"\r{self._verb}: {self._count}", err=True, nl=False)

    def interrupt(self, text: str) -> None:
        """Print one line to standard error meanwhile."""
        self.pause()
        say(text, err=True)

    def pause(self) -> None:
        """Make room for another line."""
        if self._shown:
            click.echo("\r\033[K", err=True, nl=False)


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
