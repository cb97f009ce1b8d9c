"""All files of one prediction: fetched in parallel, each kept, lost for a reason, or tried again later."""

import asyncio
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path

from redis.exceptions import RedisError

from app.core.errors import OutkeepError, Permanent, StorageFailure
from app.core.manifest import KeptFile
from app.core.outputs import find_files
from app.core.policy import attempt_timeout, keep_until, store_delay
from app.core.prediction import Prediction
from app.core.tries import Tries
from app.core.vocabulary import RETRIES
from app.records import Record, Records
from app.tally import Tally
from workers.keep import Keeper, Wanted
from workers.spill import NOT_FETCHED

PARALLEL_FILES = 8
"""Downloads of one prediction at a time; one with 249 files must not starve the others."""

NAMED_SURPLUS = 1000
"""Files over the limit that are reported lost one by one; a model can put a million URLs into one output."""

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
    more: bool
    """Whether the output holds files beyond those in `files`, of which there are too many to name."""

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
    ) -> "Run":
        """Walks the output: use a thread."""
        named = max_files + NAMED_SURPLUS
        places = list(islice(find_files(prediction.output), named + 1))
        files = [Wanted.of(record.kind, record.id, *numbered) for numbered in enumerate(places[:named])]
        ends = keep_until(prediction.completed_at, record.received_at).timestamp()
        return cls(record, prediction, files, tries, attempt, began, ends, more=len(places) > named)

    @property
    def last_start(self) -> float:
        """After this no download is started any more."""
        return max(self.ends, self.began) + LATE_START


@dataclass(frozen=True)
class _Later:
    """A file that was not asked for in this run, and in how many seconds it may be."""

    seconds: float


Result = KeptFile | OutkeepError | _Later
"""What became of a file in one run: kept, failed, or put off."""


@dataclass(frozen=True)
class Collector:
    """What it works with."""

    records: Records
    keeper: Keeper
    folder: Path
    limits: Limits
    clock: Callable[[], datetime]
    jitter: Callable[[], float]
    tally: Tally = field(default_factory=Tally)

    def require_room(self, run: Run) -> None:
        """Raise `StorageFailure` (`disk_floor`, `disk_error`) when nothing may be downloaded now."""
        if any(not wanted.place.is_inline for wanted in run.files):
            self._check_disk()

    async def collect(self, run: Run) -> list[Result]:
        """Try every file; how each one ended, in order of appearance, for `decide`."""
        gate = asyncio.Semaphore(PARALLEL_FILES)
        limit = self.limits.max_files
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._attempt(run, wanted, gate)) for wanted in run.files[:limit]]
        surplus = Permanent("too_many_files", f"only {limit} files are kept (OUTKEEP_MAX_FILES)")
        return [*(task.result() for task in tasks), *(surplus for _ in run.files[limit:])]

    async def _attempt(self, run: Run, wanted: Wanted, gate: asyncio.Semaphore) -> Result:
        known = run.record.kept.get(str(wanted.number))
        if known is not None and known["source"] == wanted.source:
            return KeptFile(**known)
        wait = run.tries.wait(str(wanted.number), run.began)
        if wait > 0:
            return _Later(wait)
        async with gate:
            if self._now() > run.last_start:
                return _Later(1.0)
            try:
                held = await asyncio.to_thread(self.keeper.held, wanted) if run.attempt > 1 else None
                timeout = attempt_timeout(run.ends - self._now())
                kept = await self.keeper.keep(wanted, held, timeout=timeout)
            except OutkeepError as error:
                return error
            if len(run.files) > 1:
                # What Redis does not remember is fetched once more, and that is all.
                with suppress(RedisError):
                    await asyncio.to_thread(self._remember, run, {wanted.number: kept})
            return kept

    def decide(self, run: Run, results: Sequence[Result]) -> list[KeptFile] | float:
        """Every file as it ended, in order of appearance, or seconds to wait before the next run."""
        # Files that fail together are tried again together: one draw for all.
        jitter = self.jitter()
        ended: dict[int, KeptFile] = {}
        delays = []
        for wanted, result in zip(run.files, results, strict=True):
            match result:
                case KeptFile():
                    ended[wanted.number] = result
                case _Later():
                    delays.append(result.seconds)
                case error:
                    delay = self._delay(run, wanted, error, jitter)
                    if wanted.number <= self.limits.max_files:  # of the surplus, one line is enough
                        _report(wanted, error, delay)
                    if delay is None:
                        ended[wanted.number] = KeptFile(wanted.place.pointer, wanted.source, error=error.code)
                    else:
                        self.tally.add(RETRIES, "fetch", error.code)
                        delays.append(delay)
        if not delays:
            return list(ended.values())
        self._remember(run, {number: file for number, file in ended.items() if file.error})
        return min(delays)

    def _delay(self, run: Run, wanted: Wanted, error: OutkeepError, jitter: float) -> float | None:
        """Seconds until a file is tried again, None when it is lost."""
        file, now = str(wanted.number), self._now()
        later = store_delay(attempt=run.attempt, jitter=jitter)
        if isinstance(error, StorageFailure):
            if error.code not in NOT_FETCHED:
                run.tries.held(file, now)
            return later
        if run.tries.is_held(file, now):
            return later  # another host has it, whose turn comes
        return run.tries.failed(file, error, now=now, remaining=run.ends - now, jitter=jitter)

    def _remember(self, run: Run, files: Mapping[int, KeptFile]) -> None:
        ended = {str(number): asdict(file) for number, file in files.items()}
        self.records.keep(run.record.kind, run.record.id, ended)

    def _check_disk(self) -> None:
        try:
            usage = shutil.disk_usage(self.folder)
        except OSError as error:
            raise StorageFailure("disk_error", f"{self.folder}: {error.strerror}") from None
        floor = self.limits.disk_floor
        if floor is None:
            floor = max(1 << 30, usage.total // 20)
        if usage.free < floor:
            raise StorageFailure(
                "disk_floor",
                f"only {usage.free >> 20} MiB are free on the disk of {self.folder}; below {floor >> 20} MiB "
                "nothing is fetched (OUTKEEP_DISK_FLOOR): make room",
            )

    def _now(self) -> float:
        return self.clock().timestamp()


def _report(wanted: Wanted, error: OutkeepError, delay: float | None) -> None:
    facts: dict[str, str] = {
        "kind": wanted.kind,
        "id": wanted.id,
        "pointer": wanted.place.pointer,
        "code": error.code,
    }
    if delay is None:
        log.error("an output is lost: %s", error.message, extra=facts)
    elif isinstance(error, Permanent):
        log.error("an output is not fetched, again in %.0f s: %s", delay, error.message, extra=facts)
    else:
        log.warning("an output is tried again in %.0f s: %s", delay, error.message, extra=facts)
