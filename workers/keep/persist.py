"""The persist job: load the event, fetch and store its files, write the manifest, enqueue notifications."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from redis import Redis
from redis.exceptions import RedisError

from app.accept import queues
from app.accept.claim_check import claimed
from app.accept.records import LiveRecords, Record
from app.core import manifest as manifests
from app.core.context import lineage
from app.core.errors import Crowded, OutkeepError, Permanent, Removed, StorageFailure, Transient
from app.core.handlers import Handler, interested
from app.core.lifecycle import Move, State
from app.core.manifest import KeptFile, Manifest
from app.core.names import (
    PERSIST_QUEUE,
    TEXT_NAME,
    Kind,
    folder_name,
    manifest_name,
    object_name,
    outcome_name,
    split_outcome_name,
)
from app.core.outcomes import Told
from app.core.outputs import OutputFile, joined_text
from app.core.policy import HOUR, Tries, keep_until, store_delay
from app.core.prediction import parse
from app.core.shares import Shares
from app.core.vocabulary import BYTES, COMPLETED_TO_STORED, FILES, HOUR_LEFT, LOST, RETRIES, STORED
from app.maintain.backlog import Traces, forget
from app.maintain.removal import erase
from app.replicate.places import Places
from app.storage.errors import Small
from app.storage.store import Storage
from app.telemetry.tally import Tally
from workers.keep.collect import Collector, Result, Run, endpoint
from workers.keep.inputs import Inputs, Tried
from workers.keep.output_file import Keeper, Ready, of_bytes

LARGE_AT_ONCE, MEDIUM_AT_ONCE = 4, 64
"""Predictions of which each holds many megabytes that are worked on at the same time, and such of more than
`MEDIUM` bytes. The others come again: a slot is no place to wait in."""

MEDIUM = 64 << 10

log = logging.getLogger("outkeep.persist")


class _Memory:
    """Places for events of one size, of whatever they wait; of those that wait for hosts fewer."""

    def __init__(self, count: int) -> None:
        self.all = Places("the memory for large events", Shares(count, 2 * count))
        waiting = Shares(count // 2, count * 3 // 4)  # of one host, and of all: other hosts and text pass
        self.waiting = Places("the memory for large events that wait", waiting)


@dataclass(frozen=True)
class Persist:
    """What the job works with. Two runs, also at once, end in the same objects, and tell nobody twice.

    `redis` is for what RQ and removals do themselves; all else goes through `records`.
    """

    redis: Redis
    records: LiveRecords
    storage: Storage
    keeper: Keeper
    collector: Collector
    handlers: Sequence[Handler]
    clock: Callable[[], datetime]
    jitter: Callable[[], float]
    tally: Tally = field(default_factory=Tally)
    inputs: Inputs | None = None
    """None: what went into a model is not kept."""
    _large: _Memory = field(init=False, repr=False, default_factory=partial(_Memory, LARGE_AT_ONCE))
    _medium: _Memory = field(init=False, repr=False, default_factory=partial(_Memory, MEDIUM_AT_ONCE))

    async def run(self, kind: Kind, prediction_id: str, tries: Tries, *, attempt: int) -> float | None:
        """Do what is left to do; seconds to wait before the next run, or None when all is done.

        `attempt` counts the runs of this job from 1; `tries` is what earlier ones learned about the files.
        Raises `Permanent` or `Unusable` for good: `record_missing` or `claim_missing` when nothing is left to
        work on.
        """
        try:
            try:
                record = await self.records.get(kind, prediction_id)
                memory = self._memory(record)
                async with memory.all.take("this process") if memory else nullcontext():
                    return await self._work(kind, prediction_id, record, tries, attempt)
            except Removed:
                forget = partial(self._forget, kind, prediction_id)
                await self.storage.run(forget, about=manifest_name(kind, prediction_id))
        except Crowded as error:
            tries.turn_away()
            return error.wait
        except (Transient, RedisError) as error:
            delay = store_delay(attempt=attempt, jitter=self.jitter())
            code, message = "redis_unavailable", f"Redis failed: {type(error).__name__}"
            if isinstance(error, Transient):
                code, message = error.code, error.message
            facts = _facts(kind, prediction_id) | {"code": code}
            log.warning("trying again in %.0f s: %s", delay, message, extra=facts)
            self.tally.add(RETRIES, "persist", code)
            return delay
        return None

    async def give_up(self, kind: Kind, prediction_id: str, error: OutkeepError) -> None:
        """Mark the record as failed: trying again by itself cannot help, a replay by the operator may."""
        await self.records.move(kind, prediction_id, Move.FAIL, self.clock(), {"error": error.code})
        facts = _facts(kind, prediction_id) | {"code": error.code}
        log.error("given up until it is replayed: %s", error.message, extra=facts)

    def _memory(self, record: Record | None) -> _Memory | None:
        """Where an event has its place; None for small ones, of which there may be any number."""
        if record is not None and record.body_at is not None:
            return self._large
        is_medium = record is not None and len(record.body or b"") > MEDIUM
        return self._medium if is_medium else None

    async def _wait_in(self, run: Run) -> AbstractAsyncContextManager[None]:
        """A place to wait for hosts in, for a large event that has to; small ones need none."""
        memory = self._memory(run.record)
        host = next((endpoint(one) for one in run.files if not one.place.is_inline), None)
        if memory and host is None and self.inputs and await asyncio.to_thread(self.inputs.has_any, run):
            host = "inputs"
        return memory.waiting.take(host) if memory and host is not None else nullcontext()

    async def _work(
        self, kind: Kind, prediction_id: str, record: Record | None, tries: Tries, attempt: int
    ) -> float | None:
        """As `run`; raises `Removed` and what storage and Redis raise, too."""
        manifest, run = await self._load(kind, prediction_id, record, tries, attempt)
        if manifest is not None:
            mending = None
            if record is not None:
                now, rules = self.clock().timestamp(), self.collector.rules
                mending = Run.mending(record, manifest, tries, attempt, now, rules=rules)
            # Also when there is something to mend: first tell what is told anyway.
            await self.dispatch(manifest, quiet=record is not None and record.receipt.quiet)
            if mending is None:
                return None
            async with await self._wait_in(mending):
                results = await self.collector.collect(mending)
            return await self._mend(mending, manifest, results)
        assert run is not None
        async with await self._wait_in(run):
            outputs = self.collector.collect(run)
            results, inputs = await self.inputs.beside(run, outputs) if self.inputs else (await outputs, [])
        return await self._conclude(run, results, inputs)

    async def _load(
        self, kind: Kind, prediction_id: str, record: Record | None, tries: Tries, attempt: int
    ) -> tuple[Manifest | None, Run | None]:
        """The manifest if there is one, else what there is to do.

        The hour does not wait until the storage is mended: while that cannot tell, what is here is fetched,
        and what it does not take is parked on this host.
        """
        about = manifest_name(kind, prediction_id)
        body = record.body if record is not None else None
        if record is None or body is None:
            read = partial(self._read_both, kind, prediction_id, record)
            found, body = await self.storage.run(read, about=about)
            if found is not None:
                return found, None
            if record is None or body is None:
                if await self.records.is_removed(kind, prediction_id):
                    raise Removed(f"{kind} {prediction_id} was removed")
                if record is not None and record.body_at is not None:
                    gone = f"the body that waited in {record.body_at} is gone, or damaged"
                    raise Permanent("claim_missing", gone)
                raise Permanent("record_missing", "there is neither a manifest nor a record with a body")
            run = await asyncio.to_thread(self._run, record, body, tries, attempt)
            await self.collector.expect_room(run)
            return None, run
        load = partial(self._run, record, body, tries, attempt)
        run = load() if len(body) <= MEDIUM else await asyncio.to_thread(load)
        if record.state is State.RECEIVED and attempt == 1 and not record.kept:
            # Nobody has worked on it. Where that is wrong, the manifest that is there stays, and counts.
            await self.collector.expect_room(run)
            return None, run
        manifest = None
        with suppress(StorageFailure):
            manifest = await self.storage.run(partial(self._read_unless_torn, record), about=about)
        if manifest is None:
            await self.collector.expect_room(run)
        return manifest, run

    def _run(self, record: Record, body: bytes, tries: Tries, attempt: int) -> Run:
        """Parses and walks the event: use a thread for all but small ones."""
        return Run.of(
            record,
            parse(body, record.kind),
            tries,
            attempt,
            self.clock().timestamp(),
            max_files=self.collector.limits.max_files,
            rules=self.collector.rules,
            has_inputs=self.inputs is not None,
        )

    def _read_both(
        self, kind: Kind, prediction_id: str, record: Record | None
    ) -> tuple[Manifest | None, bytes | None]:
        """The manifest, else the body that waits in storage."""
        manifest = self._read(kind, prediction_id, record)
        if manifest is not None or record is None:
            return manifest, None
        body = claimed(self.storage, record.body_at) if record.body_at is not None else None
        # The record came first: a run that overlaps writes the manifest before it drops the body.
        return (None, body) if body is not None else (self._read(kind, prediction_id, record), None)

    def _read_unless_torn(self, record: Record) -> Manifest | None:
        """The manifest; none when the run that has written it did not end, and what it names is not there.

        A power cut in its last moment may have taken that.
        """
        manifest = self._read(record.kind, record.id, record)
        if manifest is None or record.state is not State.RECEIVED:
            return manifest
        place = (record.kind, record.id)
        stored = (self.storage.head(object_name(*place, str(file.name))) for file in manifest.kept)
        is_whole = all(
            one is not None and one.size == file.size for one, file in zip(stored, manifest.kept, strict=True)
        )
        return manifest if is_whole else None

    def _read(self, kind: Kind, prediction_id: str, record: Record | None) -> Manifest | None:
        """The manifest, unless Replicate itself has told of the prediction since."""
        manifest = self.storage.read_manifest(kind, prediction_id)
        if manifest is None or record is None or not manifest.is_overruled_by(record.receipt):
            return manifest
        # Handlers are to be told anew of what Cog's token had told of.
        jobs = [job for job in Traces(self.redis).of(kind, prediction_id) if job.queue != PERSIST_QUEUE]
        if not all(forget(self.redis, job) for job in jobs):
            raise Transient("still_telling", "a handler is being told of what is overruled now")
        names = self.storage.names(folder_name(kind, prediction_id))
        self.storage.remove([name for name in names if split_outcome_name(name.rpartition("/")[2])])
        return None

    async def _mend(self, run: Run, manifest: Manifest, results: Sequence[Result]) -> float | None:
        """Put files in the place of losses; seconds until the next run, or None. Raises `Removed`."""
        ended = await self.collector.decide(run, results)
        if isinstance(ended, float):
            return ended
        kind, prediction_id = run.record.kind, run.record.id
        if await self.records.is_removed(kind, prediction_id):
            raise Removed(f"{kind} {prediction_id} was removed meanwhile")
        kept = [file for file in ended if isinstance(file, KeptFile)]
        numbers = [wanted.number for wanted in run.files]
        mended = manifests.mended(manifest, dict(zip(numbers, kept, strict=True)), self.clock())
        if mended.replaces(manifest):
            commit = partial(self.storage.commit, mended)
            mended = await self.storage.run(commit, about=manifest_name(kind, prediction_id))
            await self.records.move(kind, prediction_id, Move.MEND, self.clock(), counts(mended))
            facts = _facts(kind, prediction_id) | counts(mended)
            log.warning(
                "outputs that were refused are kept after all; `outkeep replay` tells handlers of them",
                extra=facts,
            )
        return None

    async def _conclude(self, run: Run, results: Sequence[Result], inputs: Sequence[Tried]) -> float | None:
        """What follows when each file was tried; seconds to wait before the next run, or None.

        Raises `Removed`.
        """
        ended = await self.collector.decide(run, results)
        if isinstance(ended, float):
            return ended
        for one in inputs:
            one.report()
        record = run.record
        commit = partial(self.commit, run, ended, [one.file for one in inputs])
        try:
            manifest, is_first = await self.storage.run(commit, about=manifest_name(record.kind, record.id))
        except Removed:
            raise
        except BaseException:
            for file in ended:
                if isinstance(file, Ready):
                    run.tries.held(str(file.wanted.number), self.clock().timestamp())
                    await self.keeper.park(file.wanted, file.fetched)
            raise
        await self.dispatch(manifest, quiet=record.receipt.quiet, is_first=is_first)
        if record.body_at is not None:
            await self.storage.run(partial(self._forget_claim, record, record.body_at), about=record.body_at)
        return None

    def commit(
        self, run: Run, ended: Sequence[KeptFile | Ready], inputs: Sequence[KeptFile] = ()
    ) -> tuple[Manifest, bool]:
        """Store what is left, then the manifest; the one that counts, and whether it is the first."""
        prediction, record = run.prediction, run.record
        files: list[KeptFile] = []
        beside: list[Small] = []
        for one in ended:
            if isinstance(one, Ready):
                file, small = self.keeper.prepare(one)
                beside.append(small)
            else:
                file = one
            files.append(file)
        text_file = None
        if (text := joined_text(prediction.output)) is not None:
            text_file = of_bytes("/output", None, TEXT_NAME, text.encode())
            beside.append((object_name(record.kind, record.id, TEXT_NAME), text.encode(), None))
        kept = list(zip((wanted.place for wanted in run.files), files, strict=True))
        gone = "too_many_files" if run.more else "data_removed" if prediction.output_was_removed else None
        if gone:
            kept.append((OutputFile("/output", ""), KeptFile("/output", None, error=gone)))
        manifest = built = manifests.build(
            prediction, kept, text_file, record.receipt, self.clock(), inputs=inputs, links=run.links
        )
        is_first = self.storage.create_manifest(built, beside)
        if not is_first:
            self._read(record.kind, record.id, record)  # it may be overruled
            manifest = self.storage.commit(built)
        facts = _facts(record.kind, record.id) | counts(manifest)
        log.log(logging.ERROR if manifest.lost else logging.INFO, "stored", extra=facts)
        if manifest is built:  # else an earlier run has counted it
            self._count(run, manifest)
        return manifest, is_first

    def _count(self, run: Run, manifest: Manifest) -> None:
        outputs = [file for file in manifest.files if not file.is_input]
        if not outputs or any(file.error is None for file in outputs):
            self.tally.add(STORED, run.record.kind)
        self.tally.add(FILES, amount=len(manifest.kept))
        self.tally.add(BYTES, amount=sum(file.size or 0 for file in manifest.kept))
        for file in manifest.lost:
            self.tally.add(LOST, file.error)
        left = run.ends - manifest.stored_at.timestamp()
        self.tally.observe(COMPLETED_TO_STORED, max(0.0, HOUR - left))
        if run.files:
            self.tally.observe(HOUR_LEFT, max(0.0, left))

    async def dispatch(self, manifest: Manifest, *, quiet: bool, is_first: bool = False) -> None:
        """Move the record on and enqueue one job for each interested handler that was not told yet.

        When it is `quiet` nobody is told, and the outcome files say so: without them a rebuild would tell
        everybody after all. Beside a manifest that `is_first` there are none yet. What was refused is listed
        for the sweep. Raises `Removed`. The record shows when it was stored, which can be read from the
        manifest again.
        """
        prediction, receipt = manifest.prediction, manifest.receipt
        place = (prediction.kind, prediction.id)
        if manifest.refused:
            await self.records.list_refused(*place, keep_until(prediction.completed_at, receipt.received_at))
        handlers = interested(self.handlers, prediction)
        if quiet or not is_first or lineage(receipt.context) is not None:
            pending = partial(self._pending, manifest, handlers, quiet=quiet)
            handlers = await self.storage.run(pending, about=manifest_name(*place))
        jobs = [queues.notify_job(self.redis, one.name, *place, timeout=one.patience) for one in handlers]
        if not await self.records.dispatch(
            *place, manifest.stored_at, counts(manifest), jobs, quiet=quiet, source=receipt.source
        ):
            await self.dispatch(manifest, quiet=False)

    def _pending(self, manifest: Manifest, handlers: Sequence[Handler], *, quiet: bool) -> list[Handler]:
        """Those of `handlers` that are to be told; of nothing that is `quiet`, which is noted beside it.

        An outcome file outlives every record, so that nobody is told twice when Redis was emptied.
        """
        self._acknowledge(manifest)
        place = (manifest.prediction.kind, manifest.prediction.id)
        pending = []
        for handler in handlers:
            name = object_name(*place, outcome_name(handler.name))
            if self.storage.head(name) is not None:
                told = None if quiet else self.storage.outcome(handler.name, *place)
                if told is None or not told.is_passed_by:
                    continue
                self.storage.remove([name])  # a rebuild would believe that nobody was to be told
            if quiet:
                self.storage.note_outcome(handler.name, *place, Told("off", 0, self.clock(), None))
            else:
                pending.append(handler)
        return pending

    def _acknowledge(self, manifest: Manifest) -> None:
        """Note beside the parent of a follow-up that this is it, whatever Redis remembers."""
        line = lineage(manifest.receipt.context)
        if line is None:
            return
        place = (line.handler, line.kind, line.parent)
        told = self.storage.outcome(*place)
        is_known = told is not None and told.child is not None
        if is_known or self.storage.head(manifest_name(line.kind, line.parent)) is None:
            return
        attempts = told.attempts if told else 1
        came = Told("delivered", attempts, self.clock(), None, child=manifest.prediction.id)
        self.storage.note_outcome(*place, came)

    def _forget_claim(self, record: Record, name: str) -> None:
        """Remove a body that waited in storage: the manifest holds it, and the record leads there no more."""
        try:
            self.storage.remove([name])
        except OutkeepError as error:
            facts = _facts(record.kind, record.id) | {"object": name, "code": error.code}
            log.info(
                "a body that is stored could not be removed from where it waited; the sweep will",
                extra=facts,
            )

    def _forget(self, kind: Kind, prediction_id: str) -> None:
        """Leave nothing of what this run, or one before it, has stored of a prediction that was removed."""
        erase(self.storage, kind, prediction_id, self.clock())
        log.info("removed meanwhile: nothing is kept", extra=_facts(kind, prediction_id))


def counts(manifest: Manifest) -> dict[str, int]:
    """How many files are kept and lost, as records and log lines say it."""
    return {"files": len(manifest.kept), "lost": len(manifest.lost)}


def _facts(kind: Kind, prediction_id: str) -> dict[str, str | int]:
    return {"kind": str(kind), "id": prediction_id}
