"""Keep the files that went into a prediction, beside its outputs and without holding those up.

Outputs are gone after an hour, inputs mostly belong to the user: so an input is tried while outputs are on
their way and a little longer, and what is not there then is told as lost.
"""

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, islice

from redis.exceptions import RedisError

from app.accept.records import Records
from app.core.answers import Body, Unconfirmed
from app.core.errors import Crowded, OutkeepError, Transient
from app.core.inputs import find_inputs
from app.core.manifest import KeptFile
from app.core.names import input_stem
from app.core.outputs import SHOWN
from app.core.policy import INPUT_PATIENCE, LATE_ATTEMPT, input_delay
from app.core.shares import Shares
from app.replicate.places import Places
from workers.keep.collect import Result, Run
from workers.keep.output_file import Keeper, Wanted

PARALLEL_FILES = 4
"""Downloads of inputs of one prediction at a time, beside those of its outputs."""

log = logging.getLogger("outkeep.persist")


@dataclass
class Tried:
    """An input, how it ended, and why its last attempt failed."""

    wanted: Wanted
    kept: KeptFile | None = None
    error: OutkeepError = field(
        default_factory=lambda: Transient("input_late", "it was not there when the outputs were")
    )

    @property
    def file(self) -> KeptFile:
        """What the manifest says of it."""
        return self.kept or KeptFile(self.wanted.place.pointer, self.wanted.source, error=self.error.code)

    def report(self) -> None:
        """Say why it is not kept."""
        if self.kept is None:
            wanted = self.wanted
            facts = {"kind": wanted.kind, "id": wanted.id, "pointer": wanted.place.pointer[:SHOWN]}
            log.warning(
                "an input is not kept: %s", self.error.message, extra=facts | {"code": self.error.code}
            )


@dataclass(frozen=True)
class Inputs:
    """What it works with. `patience` is how long inputs may take once the outputs have ended, in seconds."""

    records: Records
    keeper: Keeper
    max_files: int
    patience: float = INPUT_PATIENCE
    places: Places = field(default_factory=lambda: Places("the waits for inputs", Shares.of(256)))

    async def beside(self, run: Run, outputs: Awaitable[list[Result]]) -> tuple[list[Result], list[Tried]]:
        """What became of the outputs, and of the inputs until then and a little longer.

        Raises `Crowded` when as many wait for inputs as may: a slot is no place to wait in.
        """
        tries = await asyncio.to_thread(self._wanted, run)
        gate = asyncio.Semaphore(PARALLEL_FILES)
        tasks = [asyncio.create_task(self._keep(run, one, gate)) for one in tries]
        try:
            results = await outputs
            if not all(task.done() for task in tasks):
                try:
                    async with self.places.take("inputs"):
                        await asyncio.wait(tasks, timeout=self.patience)
                except Crowded:
                    await asyncio.to_thread(self._remember, run, results)
                    raise
        finally:
            for task in tasks:
                task.cancel()
            faults = await asyncio.gather(*tasks, return_exceptions=True)
        for fault in faults:
            if isinstance(fault, Exception):
                raise fault
        return results, tries

    def _remember(self, run: Run, results: list[Result]) -> None:
        ended = zip(run.files, results, strict=True)
        kept = {str(one.number): one.noted(file) for one, file in ended if isinstance(file, KeptFile)}
        self.records.keep(run.record.kind, run.record.id, kept)

    def has_any(self, run: Run) -> bool:
        """Whether there is one. Walks the input: use a thread."""
        return next(find_inputs(run.prediction.raw.get("input")), None) is not None

    def _wanted(self, run: Run) -> list[Tried]:
        """Walks the input: use a thread."""
        place = (run.record.kind, run.record.id)
        found = islice(find_inputs(run.prediction.raw.get("input")), self.max_files)
        # Their numbers follow those of the outputs.
        return [
            Tried(Wanted.of(*place, number, one.place, stem=input_stem(one.key, one.index)))
            for number, one in enumerate(found, start=len(run.files))
        ]

    async def _keep(self, run: Run, one: Tried, gate: asyncio.Semaphore) -> None:
        one.kept = one.wanted.recalled(run.record.kept.get(str(one.wanted.number)))
        if one.kept is not None:
            return
        before: Body | None = None
        for attempt in count(1):
            try:
                async with gate:
                    one.kept = await self._attempt(run, one.wanted, before)
                break
            except Transient as error:
                one.error = error
                before = error.body if isinstance(error, Unconfirmed) else None
                await asyncio.sleep(input_delay(attempt=attempt, asked=error.retry_after))
            except OutkeepError as error:
                one.error = error
                return
        # What Redis does not remember is fetched once more if this run is put off, and that is all.
        with suppress(RedisError):
            kept = {str(one.wanted.number): one.wanted.noted(one.file)}
            await asyncio.to_thread(self.records.keep, run.record.kind, run.record.id, kept)

    async def _attempt(self, run: Run, wanted: Wanted, before: Body | None) -> KeptFile:
        held = await asyncio.to_thread(self.keeper.held, wanted) if run.attempt > 1 else None
        return await self.keeper.keep(wanted, held, timeout=LATE_ATTEMPT, before=before)
