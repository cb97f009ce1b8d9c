"""A pass over Replicate's lists: find what ended and never arrived, and accept it.

A pass asks for what fell silent, lists what was created since the last complete pass, skips what is here, and
fetches the rest one by one, the most urgent first. It may be killed anywhere: what it took in is known to the
next one, and only a complete pass moves the mark.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from redis import Redis

from app.accept.arrivals import body_of, make_arrival
from app.accept.claim_check import ClaimCheck
from app.accept.records import Accepted, Record, Records
from app.core import reconciling as judgement
from app.core.context import context_keys, parent
from app.core.errors import OutkeepError, StorageFailure, Transient, Unusable
from app.core.manifest import Receipt, format_time
from app.core.names import Kind, manifest_name
from app.core.prediction import Prediction, from_object, parse
from app.core.reconciling import (
    SEEN_AGAIN,
    TAKEN,
    Found,
    Origin,
    Rules,
    Watched,
    asked_again_in,
    fingerprint,
    may_wait,
)
from app.core.vocabulary import FOUND
from app.deployment import Deployment
from app.maintain.removal import RemovedNotes
from app.reconcile.memory import Memory
from app.replicate.client import Api, Object, connected
from app.replicate.follow_ups import FollowUps
from app.replicate.watchlist import Watchlist
from app.storage.store import Storage
from app.telemetry.tally import Tally

Later = Callable[[], AbstractContextManager[None]]
"""A context whose block may raise `StorageFailure`: the error is raised at the end."""


@contextmanager
def raised_at_the_end() -> Iterator[Later]:
    """Only large objects need the storage here: the others must not wait while it fails."""
    failures: list[StorageFailure] = []

    @contextmanager
    def later() -> Iterator[None]:
        try:
            yield
        except StorageFailure as error:
            failures.append(error)

    yield later
    if failures:
        raise failures[0]


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


_OF_ONE = {
    "api_absent": Found.ABSENT,
    "api_failed": Found.FAILED,
    "api_rejected": Found.FAILED,
    "api_too_large": Found.UNREADABLE,
}
"""Errors that may concern one object only: the pass goes on with the others."""

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
    watchlist: Watchlist
    claims: ClaimCheck
    rules: Rules
    clock: Callable[[], datetime]
    pace: Pace
    tally: Tally

    async def settle(self, watched: Watched, report: Report) -> None:
        """Fetch one and take it in, or remember when to ask again, or that there is nothing to ask for.

        Raises `OutkeepError` and redis-py's errors when the cause is not this one object.
        """
        kind, identity = watched.kind, watched.id
        prediction = None
        try:
            whole = await self.pace.call(lambda: self.api.one(kind, identity))
            found, prediction = await asyncio.to_thread(self._take, watched, whole)
        except Unusable as error:
            _warn(watched, error)
            found = Found.UNREADABLE
        except OutkeepError as error:
            if error.code not in _OF_ONE:
                if watched.origin is Origin.HERE and isinstance(error, StorageFailure):
                    # It alone is too large while the storage fails: the others come first, the next time.
                    await asyncio.to_thread(self._ask_again, watched, Found.FAILED, None)
                raise
            found = _OF_ONE[error.code]
            if found is Found.UNREADABLE:
                _warn(watched, error)
        self.count(report, kind, found, prediction)
        remember = self._ask_again if watched.origin is Origin.HERE else self._remember
        await asyncio.to_thread(remember, watched, found, prediction)

    def count(self, report: Report, kind: Kind, found: Found, prediction: Prediction | None = None) -> None:
        """Note in the report, and for the metrics, what one was found to be."""
        report.add(kind, found, prediction)
        if found not in SEEN_AGAIN:
            self.tally.add(FOUND, found)

    def _take(self, watched: Watched, whole: Object) -> tuple[Found, Prediction]:
        kind, is_ours = watched.kind, watched.origin is Origin.HERE
        body = body_of(whole)
        prediction, now = parse(body, kind), self.clock()
        if not prediction.is_terminal:
            return Found.RUNNING, prediction
        if not is_ours and judgement.expected_for(prediction, now) > 0:
            return Found.EXPECTED, prediction
        record = self.records.get(kind, prediction.id)
        if record is not None and (record.receipt.quiet or record.receipt.source == "cog"):
            record = None  # nobody waits for it; or a claim that anybody may make
        is_known = is_ours or record is not None
        if not is_known and self._may_follow(prediction, now):
            return Found.EXPECTED, prediction
        if judgement.is_foreign(prediction, self.rules, has_record=is_known, whole=True):
            return Found.FOREIGN, prediction
        receipt = self._receipt(prediction, record, now, watched.origin)
        arrival = make_arrival(prediction, body, receipt, now)
        checked = self.claims.check_in(arrival)
        [outcome] = self.records.accept([checked], now)
        self.claims.settle(arrival, checked, outcome)
        if outcome is not Accepted.ACCEPTED:
            return Found.KNOWN, prediction
        facts = {"kind": str(kind), "id": prediction.id, "status": prediction.status, "quiet": receipt.quiet}
        log.info("taken in from the API, since no webhook told of it", extra=facts)
        return Found.LATE if judgement.is_late(prediction, now) else Found.NEW, prediction

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

    def _remember(self, watched: Watched, found: Found, prediction: Prediction | None) -> None:
        now = self.clock()
        due_at = judgement.due_at(found, prediction, now)
        if due_at is not None:
            self.watchlist.add([watched], due_at)
            return
        self.watchlist.forget(watched)
        if found in {Found.FOREIGN, Found.UNREADABLE}:
            self.memory.pass_over(watched.kind, watched.id, now)

    def _ask_again(self, watched: Watched, found: Found, _: Prediction | None) -> None:
        """The same for what was created here: it is polled by its age, as our own record tells it."""
        now, record = self.clock(), self.records.get(watched.kind, watched.id)
        age = None if record is None else (now - record.received_at).total_seconds()
        wait = asked_again_in(found, age)
        if found is Found.UNREADABLE:
            self.memory.pass_over(watched.kind, watched.id, now)
        if wait is None:
            self.watchlist.forget(watched)
        else:
            self.watchlist.put_off(watched.kind, watched.id, now.timestamp() + wait)


def _warn(watched: Watched, error: OutkeepError) -> None:
    facts = {"kind": str(watched.kind), "id": watched.id, "code": error.code}
    log.warning("what the API says of a prediction cannot be used: %s", error.message, extra=facts)


AT_ONCE = 4
"""Objects that are fetched at the same time."""

CLAIM_PATIENCE = 120.0
"""Seconds that the storage may take for a large object on its way in."""

MOST_SILENT = 300
"""Predictions that one pass asks for by id because they are silent; the others wait for the next one."""

MOST_DUE = 50
"""The same for what was created here, where there is always a next round."""

Tell = Callable[[Kind, int, int], None]
"""Is told of the progress of a pass: the kind, how many are done, of how many that had to be fetched."""


def say_nothing(_kind: Kind, _done: int, _of: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Reconciler:
    """What a pass works with."""

    asker: Asker
    storage: Storage
    tell: Tell = say_nothing

    async def run(self, report: Report, since: datetime | None = None) -> None:
        """A pass over everything.

        With `since` it looks at what was created since then, and leaves the mark alone. `report` is filled as
        it goes, so that it tells of a pass that failed, too. Raises `OutkeepError` and redis-py's errors.
        """
        with raised_at_the_end() as later:
            with later():
                await self._ask_for(self.asker.watchlist.due, MOST_SILENT, report)
            for kind in Kind:
                with later():
                    await self._look_through(kind, since, report)
        if since is None:
            await asyncio.to_thread(self._memory.completed, self._now())

    async def ask(self, report: Report) -> None:
        """Ask by id for what was created here without a webhook, where that is due; raises as `run` does."""
        await self._ask_for(self.asker.watchlist.due_here, MOST_DUE, report)

    async def _ask_for(self, due: Callable[[float, int], list[Watched]], most: int, report: Report) -> None:
        watched = await asyncio.to_thread(due, self._now().timestamp(), most)
        with raised_at_the_end() as later:
            for kind in Kind:
                of_kind = [one for one in watched if one.kind is kind]
                known = await asyncio.to_thread(self._known, kind, [one.id for one in of_kind])
                for one in of_kind:
                    if one.id in known:
                        await asyncio.to_thread(self.asker.watchlist.forget, one)
                with later():
                    await self._settle(kind, [one for one in of_kind if one.id not in known], report)

    async def _look_through(self, kind: Kind, since: datetime | None, report: Report) -> None:
        began = self._now()
        mark = await asyncio.to_thread(self._memory.mark, kind)
        listed, answered = await self._listed(kind, since or judgement.since(kind, mark, began), report)
        wanted = [_watched(item) for item in judgement.by_urgency(listed, began)]
        await self._settle(kind, wanted, report)
        if since is None:
            # Times of creation are the API's: by a clock of ours that is ahead, all would be too old.
            seen = judgement.mark_of(min(began, answered or began))
            await asyncio.to_thread(self._memory.set_mark, kind, seen)

    async def _listed(
        self, kind: Kind, since: datetime, report: Report
    ) -> tuple[list[Prediction], datetime | None]:
        """What has to be fetched of the list, and when the API first answered; the rest is counted."""
        api, pace = self.asker.api, self.asker.pace
        answered: datetime | None = None
        wanted: list[Prediction] = []
        async for page in api.pages(kind, pace.call, created_after=format_time(since)):
            answered = answered or page.at
            wanted += await asyncio.to_thread(self._sift, kind, page.items, report)
        return wanted, answered

    def _sift(self, kind: Kind, items: Sequence[Object], report: Report) -> list[Prediction]:
        """What has to be fetched of a page; what has not ended is watched."""
        now = self._now()
        listed = list(self._readable(kind, items, report))
        settled = self._memory.settled(kind, [one.id for one in listed if one.is_terminal])
        wanted = []
        for one in listed:
            found = self._judge(one, now, settled=one.id in settled)
            if found is None:
                wanted.append(judgement.in_brief(one))
                continue
            self.asker.count(report, kind, found)
            due_at = judgement.due_at(found, one, now)
            if due_at is not None:
                self.asker.watchlist.add([_watched(one)], due_at)
        return wanted

    def _judge(self, one: Prediction, now: datetime, *, settled: bool) -> Found | None:
        """What an item is, if that can be told without its object. Storage may be far: it is asked last."""
        rules = self.asker.rules
        found = judgement.judge(one, settled, rules, now)
        if found is not None or self._is_stored(one.kind, one.id):
            return found or Found.KNOWN
        if rules.mode == "known":
            has_record = self.asker.records.get(one.kind, one.id) is not None
            if judgement.is_foreign(one, rules, has_record=has_record, whole=False):
                return Found.FOREIGN
        return None

    def _readable(self, kind: Kind, items: Iterable[Object], report: Report) -> Iterable[Prediction]:
        for item in items:
            try:
                yield from_object(item, kind)
            except Unusable:
                self.asker.count(report, kind, Found.UNREADABLE)

    async def _settle(self, kind: Kind, wanted: Sequence[Watched], report: Report) -> None:
        """Settle all of them, several at a time; the first error ends it, one of the storage at its end."""
        waiting = iter(wanted)
        done = 0

        async def work(later: Later) -> None:
            nonlocal done
            for watched in waiting:
                with later():
                    await self.asker.settle(watched, report)
                    done += 1
                    self.tell(kind, done, len(wanted))

        self.tell(kind, 0, len(wanted))
        with raised_at_the_end() as later:
            tasks = [asyncio.create_task(work(later)) for _ in range(min(AT_ONCE, len(wanted)))]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _known(self, kind: Kind, ids: Sequence[str]) -> set[str]:
        """Those that are here: settled by what Redis says, or else with a manifest in storage."""
        settled = self._memory.settled(kind, ids)
        return {one for one in ids if one in settled or self._is_stored(kind, one)}

    def _is_stored(self, kind: Kind, identity: str) -> bool:
        """Whether storage knows of it: with a manifest, or as removed.

        While it fails, what Redis does not know is taken in: the hour does not wait, and a job finds the
        manifest.
        """
        try:
            if self.storage.head(manifest_name(kind, identity)) is not None:
                return True
            return RemovedNotes(self.storage, self.asker.clock).has(kind, identity)
        except StorageFailure:
            return False

    @property
    def _memory(self) -> Memory:
        return self.asker.memory

    def _now(self) -> datetime:
        return self.asker.clock()


def _watched(item: Prediction) -> Watched:
    """An item of a list."""
    origin = Origin.WEB if judgement.is_from_web(item) else Origin.ELSEWHERE
    return Watched(item.kind, item.id, origin)


@asynccontextmanager
async def reconciler_of(
    deployment: Deployment,
    redis: Redis,
    clock: Callable[[], datetime],
    *,
    tell: Tell = say_nothing,
    tally: Tally | None = None,
    pace: Pace | None = None,
) -> AsyncIterator[Reconciler]:
    """A reconciler of this deployment, which has a token, for the length of the block.

    Raises `OutkeepError` and redis-py's errors: when Outkeep first ran is read from storage and Redis.
    """
    settings = deployment.settings
    assert settings.api_token is not None
    storage, memory = Storage(settings.storage_url), Memory(redis)
    rules = Rules(
        mode="known" if settings.reconciles == "known" else "all",
        notify=settings.reconcile_notify,
        public_url=settings.public_url,
        own_url=settings.own_url,
        contexts=context_keys(deployment.secret_keys),
        first_start=await asyncio.to_thread(memory.first_start, storage, clock()),
    )
    records, floor = Records(redis, ttl=settings.record_ttl), settings.disk_floor
    claims = ClaimCheck(storage, records, patience=CLAIM_PATIENCE, disk_floor=floor, clock=clock)
    token = settings.api_token.get_secret_value()
    async with connected(settings.api_url, token) as api:
        asker = Asker(
            api=api,
            redis=redis,
            records=records,
            follow_ups=FollowUps(redis),
            memory=memory,
            watchlist=Watchlist(redis),
            claims=claims,
            rules=rules,
            clock=clock,
            pace=pace or Pace(),
            tally=tally or Tally(),
        )
        try:
            yield Reconciler(asker, storage, tell)
        finally:
            claims.close()
