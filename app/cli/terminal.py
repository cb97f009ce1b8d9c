"""Text for a terminal, which obeys what it is shown."""

import click


def printable(text: str) -> str:
    """`text` without what could move the cursor, recolour or reorder: others wrote much of what we show."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def say(text: str, *, err: bool = False) -> None:
    """Print one line."""
    click.echo(printable(text), err=err)


def table(header: list[str], rows: list[list[str]]) -> None:
    """Print rows under a header, in columns."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
