"""Ctrl-C and SIGTERM before anything is begun that they could cut off."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def fatal_interrupts() -> Iterator[None]:
    """Die of Ctrl-C at once and without a word: in the middle of an import it would come out as a traceback.

    Whoever has it ignored, as a shell does for what it runs in the background, goes on ignoring it.
    """
    listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if listens:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class Ending:
    """SIGTERM and Ctrl-C end this process with status 0, until somebody else handles them.

    Main thread only. Python drops what is raised while an object is deleted, so that the exit may not come
    through: whoever waits long or takes over asks `check` whether it should have ended.
    """

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        sys.exit(0)

    def check(self) -> None:
        """Exit with status 0 if a signal has asked for it."""
        if self._asked:
            sys.exit(0)
