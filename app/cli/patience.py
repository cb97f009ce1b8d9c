"""Waiting on the command line: for Replicate, and with Ctrl-C until it may be heard."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

from app.core.errors import Transient

TRIES = 10
LONGEST_WAIT = 60.0

_NOT_DONE = frozenset({"api_busy", "creations_limited"})
"""Codes after which nothing was created, and nothing else is wrong."""

_Result = TypeVar("_Result")


def patiently(
    call: Callable[[], _Result], say: Callable[[str], None], *, sleep: Callable[[float], None] = time.sleep
) -> _Result:
    """Do it again for as long as there are too many requests."""
    for number in range(1, TRIES):
        try:
            return call()
        except Transient as error:
            if error.code not in _NOT_DONE:
                raise
            wait = min(error.retry_after or 2.0**number, LONGEST_WAIT)
            say(f"waiting {wait:.0f} s: {error.message}")
            sleep(wait)
    return call()


@contextmanager
def interrupts_held(say: Callable[[str], None]) -> Iterator[list[int]]:
    """Note Ctrl-C, say so, and go on: what is half done here could cost money and be known to nobody."""
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            with suppress(RuntimeError):  # it came in the middle of another line
                say("waiting until it is known whether the prediction was created")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before)
