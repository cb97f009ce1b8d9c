"""Ask for one prediction or training by its id, and take it in if it has ended, like a delivery."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from redis import Redis

from app.accept.arrivals import body_of, make_arrival, outlined
from app.accept.claim_check import ClaimCheck
from app.accept.records import Accepted, Arrival, Record, Records
from app.core import reconciling as judgement
from app.core.awaited import Awaited, Origin, asked_again_in
from app.core.context import parent
from app.core.creations import fingerprint, may_wait
from app.core.errors import OutkeepError, StorageFailure, Unusable
from app.core.manifest import Receipt
from app.core.names import Kind
from app.core.prediction import Prediction, parse
from app.core.reconciling import SEEN_AGAIN, TAKEN, Found, Rules
from app.core.vocabulary import FOUND
from app.reconcile.memory import Memory
from app.reconcile.pace import Pace
from app.replicate.answers import Object
from app.replicate.client import Api
from app.replicate.created_here import CreatedHere
from app.replicate.follow_ups import FollowUps
from app.telemetry.tally import Tally

_OF_ONE = {
    "api_absent": Found.ABSENT,
    "api_failed": Found.FAILED,
    "api_rejected": Found.FAILED,
    "api_too_large": Found.UNREADABLE,
}
"""Errors that may be the fault of one object: it alone waits, or is left alone, and the others go on."""

log = logging.getLogger("outkeep.reconcile")


@dataclass
class Report:
    """What a pass has found; `taken` lists what was accepted, with what it was found to be."""

    counts: dict[Kind, Counter[Found]] = field(default_factory=lambda: {kind: Counter() for kind in Kind})
    taken: list[tuple[Prediction, Found]] = field(default_factory=list)

    def add(self, kind: Kind, found: Found, prediction: Prediction | None = None) -> None:
        """Count one."""
        self.counts[kind][found] += 1
        if prediction is not None and found in TAKEN:
            self.taken.append((prediction, found))


@dataclass(frozen=True)
class Asker:
    """What it works with."""

    api: Api
    redis: Redis
    records: Records
    follow_ups: FollowUps
    memory: Memory
    here: CreatedHere
    claims: ClaimCheck
    rules: Rules
    clock: Callable[[], datetime]
    pace: Pace
    tally: Tally

    async def settle(self, awaited: Awaited, report: Report) -> None:
        """Fetch one and take it in, or remember when to ask again, or that there is nothing to ask for.

        Raises `OutkeepError` and redis-py's errors when the cause is not this one object.
        """
        kind, identity = awaited.kind, awaited.id
        prediction = None
        try:
            whole = await self.pace.call(lambda: self.api.one(kind, identity))
            found, prediction = await asyncio.to_thread(self._take, awaited, whole)
        except Unusable as error:
            _warn(awaited, error)
            found = Found.UNREADABLE
        except OutkeepError as error:
            if error.code not in _OF_ONE:
                if awaited.origin is Origin.HERE and isinstance(error, StorageFailure):
                    # It alone is too large while the storage fails: the others come first, the next time.
                    await asyncio.to_thread(self._ask_again, awaited, Found.FAILED, None)
                raise
            found = _OF_ONE[error.code]
            if found is Found.UNREADABLE:
                _warn(awaited, error)
        self.count(report, kind, found, prediction)
        remember = self._ask_again if awaited.origin is Origin.HERE else self._remember
        await asyncio.to_thread(remember, awaited, found, prediction)

    def count(self, report: Report, kind: Kind, found: Found, prediction: Prediction | None = None) -> None:
        """Note in the report, and for the metrics, what one was found to be."""
        report.add(kind, found, prediction)
        if found not in SEEN_AGAIN:
            self.tally.add(FOUND, found)

    def _take(self, awaited: Awaited, whole: Object) -> tuple[Found, Prediction]:
        kind, is_ours = awaited.kind, awaited.origin is Origin.HERE
        body = body_of(whole)
        prediction, now = parse(body, kind), self.clock()
        if not prediction.is_terminal:
            return Found.RUNNING, prediction
        if not is_ours and judgement.expected_for(prediction, now) > 0:
            return Found.EXPECTED, prediction
        record = self.records.get(kind, prediction.id)
        if record is not None and (record.receipt.quiet or record.receipt.source == "cog"):
            record = None  # an outline of our own, for which nobody waits; or a claim that anybody may make
        is_known = is_ours or record is not None
        if not is_known and self._may_follow(prediction, now):
            return Found.EXPECTED, prediction
        if judgement.is_foreign(prediction, self.rules, has_record=is_known, whole=True):
            return Found.FOREIGN, prediction
        receipt = self._receipt(prediction, record, now, awaited.origin)
        arrival = make_arrival(self.redis, prediction, body, receipt, now)
        checked = self._check_in(arrival, now)
        [outcome] = self.records.accept([checked], now)
        self.claims.settle(arrival, checked, outcome)
        if outcome is not Accepted.ACCEPTED:
            return Found.KNOWN, prediction
        facts = {"kind": str(kind), "id": prediction.id, "status": prediction.status, "quiet": receipt.quiet}
        log.info("taken in from the API, since no webhook told of it", extra=facts)
        return Found.LATE if judgement.is_late(prediction, now) else Found.NEW, prediction

    def _check_in(self, arrival: Arrival, now: datetime) -> Arrival:
        """As the claim check does it; where that fails, the outputs at least are fetched."""
        try:
            return self.claims.check_in(arrival)
        except StorageFailure:
            short = outlined(arrival)
            if short is not None:
                self.records.accept([short], now)
            raise

    def _may_follow(self, prediction: Prediction, now: datetime) -> bool:
        """Whether it may be a follow-up whose job was killed: only that job can tell what it follows."""
        given = fingerprint(prediction.raw.get("input"))
        return may_wait(prediction, now) and self.follow_ups.may_seek(given, now)

    def _receipt(
        self, prediction: Prediction, record: Record | None, now: datetime, origin: Origin
    ) -> Receipt:
        """Where the object names no webhook of ours, what is known from an earlier event of it counts."""
        named = judgement.webhook_of(prediction, self.rules)
        if record is not None and not named.is_ours:
            query, context, before = record.receipt.query, record.receipt.context, record.receipt.parent
        else:
            query, context, before = named.query, named.context, None
        quiet = judgement.is_quiet(
            prediction,
            self.rules,
            web=origin is Origin.WEB,
            has_record=record is not None,
            is_own=origin is Origin.HERE or (record is not None and record.receipt.source == "run"),
        )
        return Receipt(
            received_at=now,
            webhook_id=None,
            source="reconcile",
            query=query,
            context=context,
            parent=parent(context) or before,
            quiet=quiet,
        )

    def forget(self, awaited: Awaited) -> None:
        """Ask for one no longer; raises redis-py's errors."""
        if awaited.origin is Origin.HERE:
            self.here.forget(awaited.kind, awaited.id)
        else:
            self.memory.forget(awaited)

    def _remember(self, awaited: Awaited, found: Found, prediction: Prediction | None) -> None:
        now = self.clock()
        heard = judgement.heard_at(found, prediction, now)
        if heard is not None:
            self.memory.expect([awaited], heard)
            return
        self.memory.forget(awaited)
        if found in {Found.FOREIGN, Found.UNREADABLE}:
            self.memory.pass_over(awaited.kind, awaited.id, now)

    def _ask_again(self, awaited: Awaited, found: Found, _: Prediction | None) -> None:
        """The same for what was created here: it is asked for by its age, as our own record tells it."""
        now, record = self.clock(), self.records.get(awaited.kind, awaited.id)
        age = None if record is None else (now - record.received_at).total_seconds()
        wait = asked_again_in(found, age)
        if found is Found.UNREADABLE:
            self.memory.pass_over(awaited.kind, awaited.id, now)
        if wait is None:
            self.forget(awaited)
        else:
            self.here.put_off(awaited.kind, awaited.id, now.timestamp() + wait)


def _warn(awaited: Awaited, error: OutkeepError) -> None:
    facts = {"kind": str(awaited.kind), "id": awaited.id, "code": error.code}
    log.warning("what the API says of a prediction cannot be used: %s", error.message, extra=facts)
