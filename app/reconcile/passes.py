"""Find what finished on Replicate and never arrived, and what nobody but Replicate can tell of.

A pass asks for what fell silent, lists what was created since the last complete pass, skips what is here, and
fetches the rest one by one, the most urgent first. It may be killed anywhere: what it took in is known to the
next one, and only a complete pass moves the mark.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from redis import Redis

from app.accept.claim_check import ClaimCheck
from app.accept.records import Records
from app.core import reconciling as judgement
from app.core.awaited import Awaited, Origin
from app.core.context import context_keys
from app.core.errors import StorageFailure, Unusable
from app.core.manifest import format_time
from app.core.names import Kind, manifest_name
from app.core.prediction import Prediction, from_object
from app.core.reconciling import Found, Rules
from app.deployment import Deployment
from app.maintain.removed_notes import RemovedNotes
from app.reconcile.late_failures import Later, raised_at_the_end
from app.reconcile.memory import Memory
from app.reconcile.one import Asker, Report
from app.reconcile.pace import Pace
from app.replicate.answers import Object
from app.replicate.client import connected
from app.replicate.created_here import CreatedHere
from app.replicate.follow_ups import FollowUps
from app.storage.store import Storage
from app.telemetry.tally import Tally

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
                await self._ask_for_silent(report)
            for kind in Kind:
                with later():
                    await self._look_through(kind, since, report)
        if since is None:
            await asyncio.to_thread(self._memory.completed, self._now())

    async def _ask_for_silent(self, report: Report) -> None:
        until = self._now().timestamp() - judgement.SILENCE
        await self._ask_for(await asyncio.to_thread(self._memory.silent, until, MOST_SILENT), report)

    async def ask(self, report: Report) -> None:
        """Ask by id for what was created here without a webhook, where that is due; raises as `run` does."""
        now = self._now().timestamp()
        await self._ask_for(await asyncio.to_thread(self.asker.here.due, now, MOST_DUE), report)

    async def _ask_for(self, awaited: Sequence[Awaited], report: Report) -> None:
        with raised_at_the_end() as later:
            for kind in Kind:
                of_kind = [one for one in awaited if one.kind is kind]
                known = await asyncio.to_thread(self._known, kind, [one.id for one in of_kind])
                for one in of_kind:
                    if one.id in known:
                        await asyncio.to_thread(self.asker.forget, one)
                with later():
                    await self._settle(kind, [one for one in of_kind if one.id not in known], report)

    async def _look_through(self, kind: Kind, since: datetime | None, report: Report) -> None:
        began = self._now()
        mark = await asyncio.to_thread(self._memory.mark, kind)
        listed, answered = await self._listed(kind, since or judgement.since(kind, mark, began), report)
        wanted = [_awaited(item) for item in judgement.by_urgency(listed, began)]
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
        """What has to be fetched of a page; what has not ended is awaited."""
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
            heard = judgement.heard_at(found, one, now)
            if heard is not None:
                self._memory.expect([_awaited(one)], heard)
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

    async def _settle(self, kind: Kind, wanted: Sequence[Awaited], report: Report) -> None:
        """Settle all of them, several at a time; the first error ends it, one of the storage at its end."""
        waiting = iter(wanted)
        done = 0

        async def work(later: Later) -> None:
            nonlocal done
            for awaited in waiting:
                with later():
                    await self.asker.settle(awaited, report)
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


def _awaited(item: Prediction) -> Awaited:
    """An item of a list."""
    origin = Origin.WEB if judgement.is_from_web(item) else Origin.ELSEWHERE
    return Awaited(item.kind, item.id, origin)


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
            here=CreatedHere(redis),
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
