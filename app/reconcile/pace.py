"""How fast the API is asked: calls at a distance, all of them on hold when it asks for that."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from app.core.errors import Transient

INTERVAL = 0.05
"""Seconds between two calls: 1,200 a minute, of the 3,000 that Replicate allows an account."""

TRIES = 6
"""How often one call is made while the API says that it is busy."""

LONGEST_HOLD = 60.0
HOLD = 5.0
"""Seconds to wait when it does not say for how long."""

BUSY = "api_busy"

T = TypeVar("T")


class Pace:
    """For one event loop."""

    def __init__(self, *, interval: float = INTERVAL) -> None:
        self._interval = interval
        self._next = 0.0

    async def call(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` gives or raises; while the API is busy it is asked again, and everyone else waits."""
        for left in reversed(range(TRIES)):
            await self._turn()
            try:
                return await ask()
            except Transient as error:
                if error.code != BUSY or not left:
                    raise
                wait = HOLD if error.retry_after is None else error.retry_after
                self._next = max(self._next, time.monotonic() + min(wait, LONGEST_HOLD))
        raise AssertionError  # the last try returns or raises

    async def _turn(self) -> None:
        now = time.monotonic()
        turn = max(now, self._next)
        self._next = turn + self._interval
        await asyncio.sleep(turn - now)
