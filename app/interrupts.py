"""Ctrl-C before anything is begun that it could cut off."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


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
