"""Tell one handler about one prediction: when an attempt is made, and what follows from how it ended."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from redis.exceptions import RedisError

from app.accept.changes import Notified, note_attempt
from app.core.errors import Permanent, Transient
from app.core.manifest import format_time
from app.core.names import Kind, notify_job_id
from app.core.outcomes import Told
from app.core.policy import UNKNOWN_PATIENCE, UNKNOWN_WAIT, notify_delay, put_off
from app.core.shares import Downstream
from app.core.vocabulary import NOTIFIED, RETRIES, STORED_TO_NOTIFIED
from app.maintain.handler_states import HandlerStates
from app.storage import told as outcome_files
from app.storage.store import Storage
from app.telemetry.tally import Tally
from workers.tell.attempt import Attempt, Attempts, Delivery, Result

_FINAL = frozenset(
    {
        "handler_unknown",
        "manifest_missing",
        "input_unresolved",
        "input_too_large",
        "follow_up_too_deep",
        "context_too_large",
        "file_too_large",
        "file_missing",
        "file_lost",
        "api_rejected",
        "api_absent",
    }
)
"""What no later attempt could change."""

_OF_THE_ACCOUNT = frozenset({"api_unpaid", "api_busy"})
"""What stops every follow-up alike: said once, until one is made again."""

_GONE = 410
_TIMED_OUT = frozenset({"timeout", "stalled"})

log = logging.getLogger("outkeep.notify")


@dataclass(frozen=True)
class Notify:
    """What the job works with. `downstreams` has one entry for each handler of the file."""

    attempts: Attempts
    storage: Storage
    states: HandlerStates
    downstreams: Mapping[str, Downstream]
    clock: Callable[[], datetime]
    jitter: Callable[[], float]
    tally: Tally = field(default_factory=Tally)
    _said: set[str] = field(init=False, repr=False, default_factory=set)

    async def run(self, delivery: Delivery, memory: dict[str, Any]) -> float | None:
        """Make one attempt; seconds to wait before the next run, or None when the handler was told.

        `memory` is kept between runs and changed in place: `attempts` lists all of them, `owed` is an outcome
        that storage did not take yet and `told` what it took, `child` the follow-up that was made, `faults`
        counts the runs that were no attempt. Raises `Permanent` when the delivery is a dead letter:
        `dead_letter` after its last
        attempt, `handler_off`.
        """
        attempts: list[dict[str, Any]] = memory.setdefault("attempts", [])
        try:
            if "owed" not in memory:
                wait, outcome = await self._try(delivery, attempts, memory)
                if outcome is None:
                    return wait
                memory["owed"] = outcome
            settle = partial(self._settle, delivery, memory, attempts)
            memory["told"] = await self.storage.run(settle, about=delivery.job)
        except (Transient, RedisError) as error:
            return self._put_off(delivery, error, memory)
        _require_told(memory.pop("owed"), delivery.handler, attempts)
        return None

    async def _try(
        self, delivery: Delivery, attempts: list[dict[str, Any]], memory: dict[str, Any]
    ) -> tuple[float | None, str | None]:
        """Make an attempt if one may be made now: seconds until the next run, or the outcome.

        Both are None when somebody else has told the handler since our last attempt, or will: the user's job.
        Raises `Transient` and redis-py's errors when there was no attempt.
        """
        told_since = partial(self._told_since, delivery, attempts)
        if attempts and bool(await self.storage.run(told_since, about=delivery.job)):
            log.info("handler told meanwhile", extra=_facts(delivery))
            return None, None
        if await asyncio.to_thread(self.states.is_off, delivery.handler):
            return None, "off"
        if (wait := self._wait_until_known(delivery, memory)) is not None:
            return wait, None
        downstream = self.downstreams.get(delivery.handler) or Downstream(1)
        began = time.monotonic()
        wait = downstream.ask(began)
        if wait is not None:
            return wait, None
        attempt, result = await self._attempt(delivery, downstream, began)
        attempts.append(asdict(attempt))
        memory["child"] = result.child
        wait, outcome = self._decide(delivery, attempt, result, number=len(attempts))
        notified = Notified(delivery.handler, outcome, len(attempts), attempt.at, attempt.error, result.child)
        await asyncio.to_thread(self._report, delivery, attempt, downstream, notified)
        self.tally.add(NOTIFIED, delivery.handler, outcome or ("retried" if attempt.error else "handed_on"))
        first = delivery.job == notify_job_id(delivery.handler, delivery.kind, delivery.id)
        if attempt.error is None and result.stored_at is not None and first:
            waited = self.clock() - result.stored_at
            self.tally.observe(STORED_TO_NOTIFIED, max(0.0, waited.total_seconds()))
        if attempt.error is not None and outcome is None:
            self.tally.add(RETRIES, "notify", attempt.error)
        return wait, outcome

    def _wait_until_known(self, delivery: Delivery, memory: dict[str, Any]) -> float | None:
        """Seconds to wait for a process whose handlers file has the handler, as during a rolling restart."""
        if delivery.handler in self.attempts.handlers:
            memory.pop("unknown_since", None)
            return None
        now = self.clock()
        if "unknown_since" not in memory:
            memory["unknown_since"] = format_time(now)
            log.warning(
                "the handlers file of this process has no such handler; another one may, for %.0f min",
                UNKNOWN_PATIENCE.total_seconds() / 60,
                extra=_facts(delivery),
            )
        if now - datetime.fromisoformat(memory["unknown_since"]) >= UNKNOWN_PATIENCE:
            return None
        self.tally.add(RETRIES, "notify", "handler_unknown")
        return UNKNOWN_WAIT * (0.5 + self.jitter())

    async def _attempt(
        self, delivery: Delivery, downstream: Downstream, began: float
    ) -> tuple[Attempt, Result]:
        answered = timed_out = False
        try:
            attempt, result = await self.attempts.make(delivery)
            answered, timed_out = attempt.status is not None, attempt.error in _TIMED_OUT
        finally:
            downstream.ended(began, time.monotonic(), answered=answered, timed_out=timed_out)
        return attempt, result

    def _decide(
        self, delivery: Delivery, attempt: Attempt, result: Result, *, number: int
    ) -> tuple[float | None, str | None]:
        """Seconds until the attempt after attempt `number`, or the outcome; neither: another job tells."""
        facts = _facts(delivery) | {"attempt": number}
        facts |= {"status": attempt.status, "milliseconds": attempt.milliseconds}
        if result.handed_on:
            log.info("event handed on to a job", extra=facts)
            return None, None
        if attempt.error is None:
            if result.child is not None:
                self._said.clear()
            log.info("handler told", extra=facts)
            return None, "delivered"
        facts |= {"code": attempt.error}
        if attempt.status == _GONE:
            return None, "off"
        wait = None
        if attempt.error not in _FINAL:
            wait = notify_delay(attempt=number, retry_after=result.asked, jitter=self.jitter())
        if wait is None:
            log.error("handler not told; the delivery is a dead letter: %s", attempt.detail, extra=facts)
            return None, "dead"
        level = self._level(attempt.error)
        log.log(level, "handler not told, again in %.0f s: %s", wait, attempt.detail, extra=facts)
        return wait, None

    def _level(self, code: str) -> int:
        """How loud to say why something is tried again."""
        if code in self._said:
            return logging.DEBUG
        if code in _OF_THE_ACCOUNT:
            self._said.add(code)
        return logging.WARNING

    def _told_since(self, delivery: Delivery, attempts: list[dict[str, Any]]) -> bool:
        """Whether the handler was told after our last attempt: by a replay, or by a run that overlapped."""
        told = outcome_files.read(self.storage, *_place(delivery))
        last = datetime.fromisoformat(attempts[-1]["at"])
        return told is not None and told.outcome == "delivered" and told.at > last

    def _report(
        self, delivery: Delivery, attempt: Attempt, downstream: Downstream, notified: Notified
    ) -> None:
        """Show how the handler fares; that alone must not fail a delivery."""
        if delivery.handler in self.downstreams:
            about = (delivery.kind, delivery.id, notified)
            with suppress(RedisError):
                self.states.report(delivery.handler, asdict(attempt), downstream.timeouts, about=about)

    def _settle(
        self, delivery: Delivery, memory: dict[str, Any], attempts: list[dict[str, Any]]
    ) -> dict[str, Any]:
        outcome = memory["owed"]
        answered_gone = outcome == "off" and attempts and attempts[-1]["status"] == _GONE
        if answered_gone and self.states.switch_off(delivery.handler, self.clock()):
            log.error(
                "the handler answered 410 and is switched off until `outkeep handlers enable %s`",
                delivery.handler,
                extra=_facts(delivery),
            )
        told = Told(
            outcome, len(attempts), self.clock(), _reason(outcome, attempts), child=memory.get("child")
        )
        if not attempts:
            untried = Notified(delivery.handler, outcome, 0, format_time(told.at), told.error)
            with suppress(RedisError):
                note_attempt(self.attempts.redis, delivery.kind, delivery.id, untried)
        return outcome_files.write(self.storage, *_place(delivery), told)

    def _put_off(self, delivery: Delivery, error: Transient | RedisError, memory: dict[str, Any]) -> float:
        """Seconds to wait for our own storage or Redis, or for what the API allows."""
        memory["faults"] = memory.get("faults", 0) + 1
        if isinstance(error, RedisError):
            error = Transient("redis_unavailable", f"Redis failed: {type(error).__name__}")
        delay = put_off(error, faults=memory["faults"], jitter=self.jitter())
        facts = _facts(delivery) | {"code": error.code}
        log.log(self._level(error.code), "trying again in %.0f s: %s", delay, error.message, extra=facts)
        self.tally.add(RETRIES, "notify", error.code)
        return delay


def _reason(outcome: str, attempts: list[dict[str, Any]]) -> str | None:
    """The code of what stood in the way at last; None when the handler was told."""
    if outcome == "delivered":
        return None
    return attempts[-1]["error"] if attempts else "handler_off"


def _place(delivery: Delivery) -> tuple[str, Kind, str]:
    return delivery.handler, delivery.kind, delivery.id


def _facts(delivery: Delivery) -> dict[str, Any]:
    """How log lines name a delivery."""
    return {"handler": delivery.handler, "kind": str(delivery.kind), "id": delivery.id}


def _require_told(outcome: str, handler: str, attempts: list[dict[str, Any]]) -> None:
    """Raise `Permanent` unless the handler was told."""
    if outcome == "off":
        raise Permanent("handler_off", f"{handler} is switched off; `outkeep handlers enable {handler}`")
    if outcome == "dead":
        raise Permanent("dead_letter", attempts[-1]["detail"])
