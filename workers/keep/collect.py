"""All files of one prediction: fetched in parallel, each kept, lost for a reason, or tried again later."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from redis.exceptions import RedisError

from app.accept.records import LiveRecords, Record
from app.core.errors import Crowded, OutkeepError, Permanent, StorageFailure
from app.core.hosts import PORTS, HostRules
from app.core.manifest import KeptFile, Manifest
from app.core.outputs import SHOWN, OutputFile, find
from app.core.policy import (
    MENDED_BY_SETTING,
    RETRIED_WITHIN_THE_HOUR,
    Tries,
    attempt_timeout,
    keep_until,
    store_delay,
)
from app.core.prediction import Prediction
from app.core.vocabulary import RETRIES
from app.telemetry.tally import Tally
from workers.keep.download import NOT_FETCHED, require_room
from workers.keep.output_file import Keeper, Ready, Wanted

PARALLEL_FILES, HOSTS_AT_ONCE = 8, 4
"""Downloads of one prediction from one host at a time, and how many times as many from all: one with 249
files must not starve the others, nor its files of a slow host those of other hosts."""

NAMED_SURPLUS = 1000
"""Files over the limit that are reported lost one by one; a model can put a million URLs into one output."""

ROOM_LASTS = 1.0
"""Seconds for which room on the disk that was found is relied on."""

LATE_START = 60.0
"""Seconds after the hour, or after the begin of a late run, in which downloads are still started. With
`LATE_ATTEMPT` on top all of them end before the job's time-out; the rest is left to the next run."""

log = logging.getLogger("outkeep.persist")


@dataclass(frozen=True)
class Limits:
    """Bounds set by the operator."""

    max_files: int
    disk_floor: int | None
    """Bytes that stay free; None: the larger of 1 GiB and 5 % of the disk."""


@dataclass(frozen=True)
class Run:
    """What one run of a persist job is about; times are Unix seconds. `attempt` counts the runs from 1."""

    record: Record
    prediction: Prediction
    files: Sequence[Wanted]
    tries: Tries
    attempt: int
    began: float
    ends: float
    """When the outputs are gone from their hosts."""
    more: bool = False
    """Whether the output holds files beyond those in `files`, of which there are too many to name."""
    links: Sequence[OutputFile] = ()
    mends: Manifest | None = None
    """What stands in storage already, when these are the files that it says were refused."""
    has_inputs: bool = False
    """Whether inputs are kept, too, for which it may have to wait."""
    said: set[str] = field(default_factory=set)
    """What the log was told of refused hosts: once for all files of one."""

    @classmethod
    def of(
        cls,
        record: Record,
        prediction: Prediction,
        tries: Tries,
        attempt: int,
        began: float,
        *,
        max_files: int,
        rules: HostRules,
        has_inputs: bool = False,
    ) -> "Run":
        """Walks the output: use a thread."""
        found = find(prediction.output, rules, most=max_files + NAMED_SURPLUS)
        files = [Wanted.of(record.kind, record.id, *numbered) for numbered in enumerate(found.files)]
        ends = keep_until(prediction.completed_at, record.received_at).timestamp()
        about: dict[str, Any] = {"more": not found.is_all, "links": found.links, "has_inputs": has_inputs}
        return cls(record, prediction, files, tries, attempt, began, ends, **about)

    @classmethod
    def mending(
        cls, record: Record, manifest: Manifest, tries: Tries, attempt: int, began: float, *, rules: HostRules
    ) -> "Run | None":
        """What is to be fetched after all, since the operator has changed a setting within the hour."""
        ends = keep_until(manifest.prediction.completed_at, manifest.receipt.received_at).timestamp()
        files = [
            Wanted.of(record.kind, record.id, number, OutputFile(lost.pointer, lost.source))
            for number, lost in manifest.refused.items()
            if lost.source is not None and rules.permits(lost.source)
        ]
        if not files or began >= ends:
            return None
        record = replace(record, kept={})
        return cls(record, manifest.prediction, files, tries, attempt, began, ends, mends=manifest)

    @property
    def commits_at_once(self) -> bool:
        """Whether the first manifest of all of it follows when the last file is here."""
        return self.mends is None and not self.has_inputs

    @property
    def last_start(self) -> float:
        """After this no download is started any more."""
        return max(self.ends, self.began) + LATE_START


@dataclass(frozen=True)
class _Later:
    """A file that may not be asked for before `due` (Unix seconds)."""

    due: float
    crowded: bool = False
    """Whether that is because others take all places of its host."""


Result = KeptFile | Ready | _Later
"""What became of a file in one run: kept, lost for a reason, about to be stored, or put off."""


class _Going:
    """How many files are being tried: while any is, the others need not wait for the next run.

    `gates` lets a few files of each host pass at a time, `gate` a few more of all. `crowded` says until when
    (Unix seconds) no file of a host is tried: one asks for all of them.
    """

    def __init__(self, count: int, parallel: int) -> None:
        self.gate = asyncio.Semaphore(HOSTS_AT_ONCE * parallel)
        self.gates = defaultdict[str, asyncio.Semaphore](partial(asyncio.Semaphore, parallel))
        self.crowded: dict[str, float] = {}
        self._count = count
        self._put_off = 0
        self._none = asyncio.Event()

    @property
    def is_last(self) -> bool:
        """Whether one file is left, and the others have ended for good."""
        return self._count == 1 and not self._put_off

    def began(self) -> None:
        self._count += 1

    def ended(self) -> None:
        self._count -= 1
        if self._count == 0:
            self._none.set()

    async def none_left(self, seconds: float) -> bool:
        """Wait for the end of them all, for so long at most; whether it has come."""
        self._put_off += 1
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none.wait(), seconds)
        self._put_off -= 1
        return self._none.is_set()


class _Room:
    """Until when (`time.monotonic`) there is room on the disk, as it was found."""

    until = 0.0


@dataclass(frozen=True)
class Collector:
    """What it works with."""

    records: LiveRecords
    keeper: Keeper
    folder: Path
    limits: Limits
    clock: Callable[[], datetime]
    jitter: Callable[[], float]
    rules: HostRules
    """Which URLs in an output are files."""
    tally: Tally = field(default_factory=Tally)
    parallel: int = PARALLEL_FILES
    _room: _Room = field(init=False, repr=False, default_factory=_Room)

    async def expect_room(self, run: Run) -> None:
        """Raise `StorageFailure` (`disk_floor`, `disk_error`) when nothing may be downloaded now.

        What was found is good for a moment: a disk is not filled by small files, and large ones look again.
        """
        if self._room.until < time.monotonic() and any(not wanted.place.is_inline for wanted in run.files):
            await asyncio.to_thread(require_room, self.folder, self.limits.disk_floor)
            self._room.until = time.monotonic() + ROOM_LASTS

    async def collect(self, run: Run) -> list[Result]:
        """Try every file; how each one ended, in order of appearance, for `decide`."""
        wanted, surplus = run.files[: self.limits.max_files], run.files[self.limits.max_files :]
        going = _Going(len(wanted), self.parallel)
        # Files that fail together are tried again together: one draw for all.
        jitter = self.jitter()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._try(run, one, going, jitter)) for one in wanted]
        return [*(task.result() for task in tasks), *self._refused(surplus)]

    def _refused(self, surplus: Sequence[Wanted]) -> list[KeptFile]:
        message = f"only {self.limits.max_files} files are kept (OUTKEEP_MAX_FILES)"
        error = Permanent("too_many_files", message)
        for first in surplus[:1]:  # one line is enough
            _report(first, error, None)
        return [_lost(one, error) for one in surplus]

    async def _try(self, run: Run, wanted: Wanted, going: _Going, jitter: float) -> Result:
        """Try a file, and again while others are on their way: a slow one must not cost them the hour."""
        may_be_parked = run.attempt > 1
        while True:
            result = await self._attempt(run, wanted, going, jitter, may_be_parked=may_be_parked)
            going.ended()
            if not isinstance(result, _Later) or await going.none_left(result.due - self._now()):
                return result
            may_be_parked = True
            going.began()

    async def _attempt(
        self, run: Run, wanted: Wanted, going: _Going, jitter: float, *, may_be_parked: bool
    ) -> Result:
        known = wanted.recalled(run.record.kept.get(str(wanted.number)))
        if known is not None and not self._may_be_mended(wanted, known):
            return known
        wait = run.tries.wait(str(wanted.number), self._now())
        if wait > 0:
            return _Later(self._now() + wait)
        if wanted.place.is_inline:
            return await self._keep(run, wanted, going, jitter, may_be_parked=False)
        async with going.gates[endpoint(wanted)], going.gate:
            return await self._keep(run, wanted, going, jitter, may_be_parked=may_be_parked)

    async def _keep(
        self, run: Run, wanted: Wanted, going: _Going, jitter: float, *, may_be_parked: bool
    ) -> Result:
        began = self._now()
        if began > run.last_start:
            return _Later(began + 1.0)
        if began < (due := going.crowded.get(endpoint(wanted), 0.0)):
            return _Later(due, crowded=True)
        try:
            if wanted.place.is_inline:
                kept = await self.keeper.store_inline(wanted)
            else:
                timeout = attempt_timeout(run.ends - began)
                body = run.tries.body(str(wanted.number))
                fetched = await self.keeper.bring(
                    wanted, may_be_parked=may_be_parked, timeout=timeout, before=body
                )
                if fetched.path is None and run.commits_at_once and going.is_last:
                    return Ready(wanted, fetched)
                kept = await self.keeper.store(wanted, fetched)
        except Crowded as error:
            going.crowded[error.key] = due = self._now() + error.wait
            return _Later(due, crowded=True)
        except OutkeepError as error:
            return self._failed(run, wanted, error, began, jitter)
        if len(run.files) > 1:
            # What Redis does not remember is fetched once more, and that is all.
            with suppress(RedisError):
                await self._remember(run, {wanted.number: kept})
        return kept

    def _may_be_mended(self, wanted: Wanted, known: KeptFile) -> bool:
        return known.error in MENDED_BY_SETTING and self.rules.permits(wanted.source)

    async def decide(self, run: Run, results: Sequence[Result]) -> list[KeptFile | Ready] | float:
        """Every file as it ended, in order of appearance, or seconds to wait before the next run.

        Then what is lost is remembered.
        """
        ended = [result for result in results if not isinstance(result, _Later)]
        if len(ended) == len(results):
            return ended
        lost = {
            wanted.number: result
            for wanted, result in zip(run.files, results, strict=True)
            if isinstance(result, KeptFile) and result.error
        }
        await self._remember(run, lost)
        later = [result for result in results if isinstance(result, _Later)]
        if any(result.crowded for result in later):
            run.tries.turn_away()
        dues = [result.due for result in later]
        if not dues:
            return store_delay(attempt=run.attempt, jitter=self.jitter())
        return max(0.0, min(dues) - self._now())

    def _failed(self, run: Run, wanted: Wanted, error: OutkeepError, began: float, jitter: float) -> Result:
        """What follows from the failure of an attempt that was begun at `began` (Unix seconds)."""
        delay = self._delay(run, wanted, error, began, jitter)
        if error.code not in MENDED_BY_SETTING or error.message not in run.said:
            _report(wanted, error, delay)
        run.said.add(error.message)
        if delay is None:
            return _lost(wanted, error)
        self.tally.add(RETRIES, "fetch", error.code)
        return _Later(self._now() + delay)

    def _delay(
        self, run: Run, wanted: Wanted, error: OutkeepError, began: float, jitter: float
    ) -> float | None:
        """Seconds until a file is tried again, None when it is lost."""
        file, now = str(wanted.number), self._now()
        later = store_delay(attempt=run.attempt, jitter=jitter)
        if isinstance(error, StorageFailure):
            if error.code not in NOT_FETCHED:
                run.tries.held(file, now)
            return later
        if run.tries.is_held(file, now):
            return later  # another host has it, whose turn comes
        remaining = run.ends - now
        if began < run.ends:  # the attempt after the hour is still to come
            remaining = max(remaining, 1.0)
        return run.tries.failed(file, error, now=now, remaining=remaining, jitter=jitter)

    async def _remember(self, run: Run, files: Mapping[int, KeptFile]) -> None:
        ended = {str(one.number): one.noted(files[one.number]) for one in run.files if one.number in files}
        await self.records.keep(run.record.kind, run.record.id, ended)

    def _now(self) -> float:
        return self.clock().timestamp()


def endpoint(wanted: Wanted) -> str:
    """Host and port as `Crowded` names them; of another spelling, each file asks for itself."""
    with suppress(ValueError):
        parts = urlsplit(wanted.source)
        return f"{parts.hostname}:{parts.port or PORTS.get(parts.scheme)}"
    return ""


def _lost(wanted: Wanted, error: OutkeepError) -> KeptFile:
    return KeptFile(wanted.place.pointer, wanted.source, error=error.code)


def _report(wanted: Wanted, error: OutkeepError, delay: float | None) -> None:
    facts: dict[str, str] = {
        "kind": wanted.kind,
        "id": wanted.id,
        "pointer": wanted.place.pointer[:SHOWN],
        "code": error.code,
    }
    if delay is None:
        log.error("an output is lost: %s", error.message, extra=facts)
    elif error.code in RETRIED_WITHIN_THE_HOUR:
        log.error("an output is not fetched, again in %.0f s: %s", delay, error.message, extra=facts)
    else:
        log.warning("an output is tried again in %.0f s: %s", delay, error.message, extra=facts)
