"""Follow one prediction from outside: until it ends at Replicate, and until its outputs are kept here.

Who has a public URL is told by webhooks. Without one, or when they do not come, the object that was read from
the API goes in the same way, so that workers and handlers see no difference.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from app.accept.arrivals import body_of, make_arrival
from app.accept.claim_check import ClaimCheck
from app.accept.records import Accepted, Records
from app.core.context import parent
from app.core.errors import OutkeepError, Permanent, Transient
from app.core.lifecycle import State
from app.core.manifest import Manifest, Receipt
from app.core.names import Kind
from app.core.policy import poll_delay
from app.core.prediction import Prediction, from_object, parse
from app.replicate.client import Api
from app.replicate.watchlist import Watchlist
from app.storage.store import Storage

LOOK = 0.2
"""Seconds between two looks at the record."""

WEBHOOK_PATIENCE = 5.0
"""Seconds after the end in which the webhook may still come."""

ASKED_BY_OTHERS = 10.0
"""Seconds after our last question after which workers ask, too: longer than we usually wait."""

SLOW = 30.0
"""Seconds after which keeping the outputs takes long."""


@dataclass(frozen=True)
class Follower:
    """One prediction on its way. `warn` is told what takes long or fails for a while."""

    redis: Redis
    records: Records
    storage: Storage
    claims: ClaimCheck
    clock: Callable[[], datetime]
    context: Any
    awaits_webhook: bool
    warn: Callable[[str], None]

    def hand_in(self, raw: dict[str, Any]) -> Accepted:
        """Record an object of the API as if a webhook had brought it; again is no harm.

        Raises `Transient` when Redis or storage did not confirm, `Unusable` when it is no prediction.
        """
        body = body_of(raw)
        prediction = parse(body, Kind.PREDICTION)
        now = self.clock()
        receipt = Receipt(now, None, source="run", context=self.context, parent=parent(self.context))
        asked = not self.awaits_webhook
        made = make_arrival(prediction, body, receipt, now, is_asked_for=asked)
        checked = self.claims.check_in(made)
        [outcome] = self.records.accept([checked], now)
        self.claims.settle(made, checked, outcome)
        return outcome

    async def until_end(self, api: Api, prediction_id: str, show: Callable[[Prediction], None]) -> Prediction:
        """Poll until Replicate changes nothing more; `show` sees every state that was read."""
        began = asyncio.get_running_loop().time()
        failures = 0
        while True:
            asked = None
            await asyncio.to_thread(self._keep_others_from_asking, prediction_id)
            try:
                raw = await api.one(Kind.PREDICTION, prediction_id)
                prediction = from_object(raw, Kind.PREDICTION)
                show(prediction)
                if prediction.is_terminal:
                    return prediction
                failures = 0
            except Transient as error:
                failures, asked = failures + 1, error.retry_after
                self.warn(f"asked again later: {error.message}")
            age = asyncio.get_running_loop().time() - began
            await asyncio.sleep(poll_delay(age=age, failures=failures, asked=asked))

    async def until_kept(self, prediction: Prediction) -> Manifest:
        """Wait for the manifest of a prediction that has ended.

        Raises `Permanent` when keeping was given up, or the prediction was removed.
        """
        loop = asyncio.get_running_loop()
        ended, hinted = loop.time(), False
        while True:
            waited = loop.time() - ended
            patient = self.awaits_webhook and waited < WEBHOOK_PATIENCE
            try:
                manifest = await asyncio.to_thread(self._look, prediction, patient=patient)
            except (Transient, RedisError) as error:
                reason = error.message if isinstance(error, OutkeepError) else type(error).__name__
                self.warn(f"tried again: {reason}")
                manifest = None
            if manifest is not None:
                return manifest
            if waited > SLOW and not hinted:
                hinted = True
                self.warn("keeping the outputs takes long; the log of the persist worker says why")
            await asyncio.sleep(LOOK)

    def _keep_others_from_asking(self, prediction_id: str) -> None:
        """Should this process die, a worker asks for it all the same, a little later."""
        until = self.clock().timestamp() + ASKED_BY_OTHERS
        with suppress(RedisError):  # then it is asked for twice
            Watchlist(self.redis).put_off(Kind.PREDICTION, prediction_id, until)

    def _look(self, prediction: Prediction, *, patient: bool) -> Manifest | None:
        """The manifest, once it is there; unless we are `patient`, what nobody handed in is handed in."""
        record = self.records.get(prediction.kind, prediction.id)
        if record is not None and record.receipt.source == "cog":
            record = None  # no more than a token vouches for it
        if record is not None and record.state is State.FAILED:
            raise Permanent(
                record.error or "failed", f"{prediction.id} was not kept; see `outkeep show {prediction.id}`"
            )
        if record is not None and record.state is State.RECEIVED:
            return None
        if record is None or record.state is not State.RUNNING:
            manifest = self.storage.read_manifest(prediction.kind, prediction.id)
            if manifest is not None and manifest.receipt.source != "cog":
                return manifest
        if not patient:
            outcome = self.hand_in(prediction.raw)
            if outcome is Accepted.DUPLICATE and self.records.get(prediction.kind, prediction.id) is None:
                raise Permanent("removed", f"{prediction.id} was removed from here and is not kept")
        return None
