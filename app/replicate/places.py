"""Places for what waits on others, by the rule of `core.shares`: take one, wait a moment, or come again."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from app.core.errors import Crowded
from app.core.shares import SOONEST, Shares

MOMENT = 1.0
"""Seconds that one waits here for a place where things move; what is slow is left, and the slot with it."""


class Places:
    """For one event loop; `name` is what is shared, for messages."""

    def __init__(self, name: str, shares: Shares, now: Callable[[], float] = time.monotonic) -> None:
        self.shares = shares
        self._name = name
        self._now = now

    @asynccontextmanager
    async def take(self, key: str) -> AsyncIterator[None]:
        """Hold a place of `key` for the length of the block; raises `Crowded` when there is none soon."""
        until = self._now() + MOMENT
        while (wait := self.shares.ask(key, began := self._now())) is not None:
            if began + wait > until:
                message = f"all that {key} may have of {self._name} is taken"
                raise Crowded(message, key=key, wait=max(wait, SOONEST))
            await asyncio.sleep(wait)
        try:
            yield
        finally:
            self.shares.ended(key, began, self._now())
