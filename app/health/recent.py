"""A result of blocking work that many ask for: made once at a time, in its own thread, and kept a while."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Work that hangs holds up who asks for its result, and nobody else. For one event loop."""

    def __init__(self, work: Callable[[], T], *, kept: float) -> None:
        """A result is given out again for `kept` seconds."""
        self._work = work
        self._kept = kept
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recent")
        self._run: asyncio.Future[T] | None = None
        self._ended = 0.0

    async def get(self) -> T:
        """The result, or what the work raised."""
        run = self._run
        if run is None or (run.done() and time.monotonic() - self._ended >= self._kept):
            run = self._run = asyncio.get_running_loop().run_in_executor(self._thread, self._timed)
        # Who does not wait any more must not end it for the others.
        return await asyncio.shield(run)

    def _timed(self) -> T:
        try:
            return self._work()
        finally:
            self._ended = time.monotonic()
