"""A store that lets us wait in vain is left alone for a while, so that what can be done without it is done.

Each `Storage` notes that for itself. Nothing is refused for a store that answers, whatever it says.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.core.bucket_faults import NO_ANSWER
from app.core.errors import StorageFailure

SLOW = 3.0
"""Seconds after which a failure means that somebody waited in vain."""

PATIENCE = 3
"""How often in a row that happens before nobody waits any more."""

REST = 30.0
"""Seconds after which one asks again, for all the others."""


class Silence:
    """Whether a store is silent. Threads may share it."""

    def __init__(self, *, rest: float = REST, now: Callable[[], float] = time.monotonic) -> None:
        self._rest = rest
        self._now = now
        self._in_vain = 0
        self._ask_again = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Ask the store in this block; raises `StorageFailure` (`storage_silent`) when nobody should."""
        if not self._may_ask():
            message = f"the storage was silent a moment ago; it is asked again within {self._rest:.0f} s"
            raise StorageFailure("storage_silent", message)
        began = self._now()
        try:
            yield
        except StorageFailure as error:
            self._note(in_vain=error.code == NO_ANSWER and self._now() - began >= SLOW)
            raise
        self._note(in_vain=False)

    def _note(self, *, in_vain: bool) -> None:
        with self._lock:
            self._in_vain = self._in_vain + 1 if in_vain else 0
            self._ask_again = self._now() + self._rest

    def _may_ask(self) -> bool:
        with self._lock:
            if self._in_vain < PATIENCE:
                return True
            if self._now() < self._ask_again:
                return False
            self._ask_again = self._now() + self._rest
            return True
