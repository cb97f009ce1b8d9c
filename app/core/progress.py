"""How far a running prediction is, as its logs tell."""

import re

_BAR = re.compile(r"\s*(?P<percent>[0-9]{1,3})%\s*\|.*\|\s*[0-9]+/[0-9]+", re.ASCII)
"""A line of tqdm, of which most models are made."""

_TAIL = 20_000
"""Characters of the logs in which the latest line is looked for."""


def percentage(logs: str) -> int | None:
    """The latest percentage, 0 to 100; None when the model tells none."""
    for line in reversed(re.split(r"[\r\n]", logs[-_TAIL:])):
        found = _BAR.match(line)
        if found:
            return min(int(found["percent"]), 100)
    return None


def bar(percent: int, *, width: int = 30) -> str:
    """`[#####     ]  45%`."""
    filled = width * percent // 100
    return f"[{'#' * filled}{' ' * (width - filled)}] {percent:3}%"


def grown(before: str, after: str) -> str:
    """What to print so that `after` stands where `before` does; all of it when it did not merely grow."""
    return after.removeprefix(before) if after.startswith(before) else f"\n{after}"
