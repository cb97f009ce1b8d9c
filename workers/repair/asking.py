"""When Replicate is asked for what was created here without a webhook: soon, and less often as it grows old.

One process at a time asks for what is due. While nothing is awaited, all that happens is a look at one key.
"""

import asyncio

from redis import Redis

from app.deployment import Deployment
from app.reconcile.one import Report
from app.reconcile.pace import Pace
from app.reconcile.passes import Reconciler, reconciler_of
from app.replicate.created_here import CreatedHere
from app.telemetry.tally import Tally
from app.telemetry.trouble import Trouble

LOOK = 2.0
"""Seconds between two looks at what is awaited: no more than the shortest wait before something is due."""

AGAIN = 5.0
"""Seconds after which it is tried again when the API, Redis or the storage fails."""

OTHERS = 0.5
"""Seconds to wait while another process asks."""

INTERVAL = 0.1
"""Seconds between two calls: 600 a minute, beside the 1,200 of a pass, of the 3,000 that Replicate allows."""


class Asking:
    """Asks until it is cancelled."""

    def __init__(self, deployment: Deployment, redis: Redis, *, again: float = AGAIN) -> None:
        self._deployment = deployment
        self._redis = redis
        self._here = CreatedHere(redis)
        self._pace = Pace(interval=INTERVAL)
        self._again = again
        self._trouble = Trouble("asking for what was created here", again)

    async def work(self) -> None:
        """Ask whenever something is due."""
        while True:
            wait = LOOK
            try:
                if await asyncio.to_thread(self._here.next_at) is not None:
                    await self._while_awaited()
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end it for good
                self._trouble.begins(error)
                wait = self._again
            await asyncio.sleep(wait)

    async def _while_awaited(self) -> None:
        """With one connection, ask until nothing is awaited any more."""
        tally = Tally()
        async with reconciler_of(
            self._deployment, self._redis, self._deployment.clock, tally=tally, pace=self._pace
        ) as reconciler:
            while (at := await asyncio.to_thread(self._here.next_at)) is not None:
                wait = at - self._deployment.clock.time()
                if wait > 0:
                    await asyncio.sleep(min(wait, LOOK))
                    continue
                try:
                    await self._round(reconciler)
                finally:
                    await asyncio.to_thread(tally.flush, self._redis)

    async def _round(self, reconciler: Reconciler) -> None:
        with self._here.turn() as ours:
            if ours:
                await reconciler.ask(Report())
                self._trouble.ends()
        if not ours:
            await asyncio.sleep(OTHERS)
