"""The persist job: load the event, fetch and store its files, write the manifest, enqueue notifications."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from redis import Redis
from redis.exceptions import RedisError

from app.accept import queues
from app.accept.claim_check import claimed
from app.accept.records import Record, Records
from app.core import manifest as manifests
from app.core.context import lineage
from app.core.errors import Crowded, OutkeepError, Permanent, Removed, StorageFailure, Transient
from app.core.handlers import Handler, interested
from app.core.lifecycle import Move
from app.core.manifest import KeptFile, Manifest
from app.core.names import (
    PERSIST_QUEUE,
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
from app.storage import told as outcome_files
from app.storage.store import Storage
from app.telemetry.tally import Tally
from workers.keep.collect import Collector, Result, Run, endpoint
from workers.keep.inputs import Inputs, Tried
from workers.keep.output_file import Keeper


@dataclass(frozen=True)
class Dispatcher:
    """What it works with. Doing it again tells nobody twice."""

    redis: Redis
    records: Records
    storage: Storage
    handlers: Sequence[Handler]
    clock: Callable[[], datetime]

    def dispatch(self, manifest: Manifest, *, quiet: bool) -> None:
        """Move the record on and enqueue one job for each interested handler that was not told yet.

        When it is `quiet` nobody is told, and the outcome files say so: without them a rebuild would tell
        everybody after all. Raises `Removed`. The record shows when it was stored, which can be read from the
        manifest again.
        """
        prediction = manifest.prediction
        place = (prediction.kind, prediction.id)
        self._acknowledge(manifest)
        jobs = []
        for handler in interested(self.handlers, prediction):
            if not self._is_untold(handler, *place, quiet=quiet):
                continue
            if quiet:
                passed_by = Told("off", 0, self.clock(), None)
                outcome_files.write(self.storage, handler.name, *place, passed_by)
            else:
                jobs.append(queues.notify_job(self.redis, handler.name, *place, timeout=handler.patience))
        facts, source = counts(manifest), manifest.receipt.source
        if not self.records.dispatch(*place, manifest.stored_at, facts, jobs, quiet=quiet, source=source):
            self.dispatch(manifest, quiet=False)

    def unsay(self, kind: Kind, prediction_id: str) -> None:
        """Let handlers be told anew of what Cog's token had told of: Replicate itself tells of it now.

        Raises `Transient` while a job tells of the former.
        """
        jobs = [job for job in Traces(self.redis).of(kind, prediction_id) if job.queue != PERSIST_QUEUE]
        if not all(forget(self.redis, job) for job in jobs):
            raise Transient("still_telling", "a handler is being told of what is overruled now")
        names = self.storage.names(folder_name(kind, prediction_id))
        self.storage.remove([name for name in names if split_outcome_name(name.rpartition("/")[2])])

    def _is_untold(self, handler: Handler, kind: Kind, prediction_id: str, *, quiet: bool) -> bool:
        """Whether there is no outcome yet; that nobody was to be told is none any more unless it is `quiet`.

        An outcome file outlives every record, so that nobody is told twice when Redis was emptied.
        """
        name = object_name(kind, prediction_id, outcome_name(handler.name))
        if self.storage.head(name) is None:
            return True
        told = None if quiet else outcome_files.read(self.storage, handler.name, kind, prediction_id)
        if told is None or not told.is_passed_by:
            return False
        self.storage.remove([name])  # a rebuild would believe it
        return True

    def _acknowledge(self, manifest: Manifest) -> None:
        """Note beside the parent of a follow-up that this is it, whatever Redis remembers."""
        line = lineage(manifest.receipt.context)
        if line is None:
            return
        place = (line.handler, line.kind, line.parent)
        told = outcome_files.read(self.storage, *place)
        is_known = told is not None and told.child is not None
        if is_known or self.storage.head(manifest_name(line.kind, line.parent)) is None:
            return
        attempts = told.attempts if told else 1
        came = Told("delivered", attempts, self.clock(), None, child=manifest.prediction.id)
        outcome_files.write(self.storage, *place, came)


def counts(manifest: Manifest) -> dict[str, int]:
    """How many files are kept and lost, as records and log lines say it."""
    return {"files": len(manifest.kept), "lost": len(manifest.lost)}


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
    """What the job works with. Running twice, or two at once, ends in the same objects."""

    records: Records
    storage: Storage
    keeper: Keeper
    collector: Collector
    dispatcher: Dispatcher
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
                record = await asyncio.to_thread(self.records.get, kind, prediction_id)
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
            return self._put_off(kind, prediction_id, error, attempt)
        return None

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
        about = manifest_name(kind, prediction_id)
        # The record came first: a run that overlaps writes the manifest before it drops the body.
        manifest = await self._manifest(kind, prediction_id, record)
        if manifest is None:
            load = partial(self._load, kind, prediction_id, record, tries, attempt)
        else:
            load = partial(self._left, manifest, record, tries, attempt)
        is_here = manifest is not None or (record is not None and bool(record.body))
        loaded = await (asyncio.to_thread(load) if is_here else self.storage.run(load, about=about))
        if isinstance(loaded, Run):
            if loaded.mends is not None:  # first tell what is told anyway
                quiet = loaded.record.receipt.quiet
                await self.storage.run(partial(self._dispatch, loaded.mends, quiet=quiet), about=about)
                async with await self._wait_in(loaded):
                    results = await self.collector.collect(loaded)
                return await self.storage.run(partial(self._mend, loaded, loaded.mends, results), about=about)
            async with await self._wait_in(loaded):
                outputs = self.collector.collect(loaded)
                results, inputs = (
                    await self.inputs.beside(loaded, outputs) if self.inputs else (await outputs, [])
                )
            conclude = partial(self.conclude, loaded, results, inputs)
            return await self.storage.run(conclude, about=about)
        quiet = record is not None and record.receipt.quiet
        await self.storage.run(partial(self._dispatch, loaded, quiet=quiet), about=about)
        return None

    def _dispatch(self, manifest: Manifest, *, quiet: bool) -> None:
        """Hand a stored prediction on; what was refused is listed for the sweep. Raises `Removed`."""
        prediction = manifest.prediction
        if manifest.refused:
            until = keep_until(prediction.completed_at, manifest.receipt.received_at)
            self.records.list_refused(prediction.kind, prediction.id, until)
        self.dispatcher.dispatch(manifest, quiet=quiet)

    def _mend(self, run: Run, manifest: Manifest, results: Sequence[Result]) -> float | None:
        """Put files in the place of losses; seconds until the next run, or None. Raises `Removed`."""
        ended = self.collector.decide(run, results)
        if isinstance(ended, float):
            return ended
        kind, prediction_id = run.record.kind, run.record.id
        if self.records.is_removed(kind, prediction_id):
            raise Removed(f"{kind} {prediction_id} was removed meanwhile")
        numbers = [wanted.number for wanted in run.files]
        mended = manifests.mended(manifest, dict(zip(numbers, ended, strict=True)), self.clock())
        if mended.replaces(manifest):
            mended = self.storage.commit(mended)
            self.records.move(kind, prediction_id, Move.MEND, self.clock(), counts(mended))
            facts = _facts(kind, prediction_id) | counts(mended)
            log.warning(
                "outputs that were refused are kept after all; `outkeep replay` tells handlers of them",
                extra=facts,
            )
        return None

    def conclude(self, run: Run, results: Sequence[Result], inputs: Sequence[Tried]) -> float | None:
        """What follows when each file was tried; seconds to wait before the next run, or None.

        Raises `Removed`.
        """
        ended = self.collector.decide(run, results)
        if isinstance(ended, float):
            return ended
        if self.records.is_removed(run.record.kind, run.record.id):
            raise Removed(f"{run.record.kind} {run.record.id} was removed meanwhile")
        for one in inputs:
            one.report()
        manifest = self.commit(run, ended, [one.file for one in inputs])
        self._dispatch(manifest, quiet=run.record.receipt.quiet)
        self._forget_claim(run.record)
        return None

    def _forget_claim(self, record: Record) -> None:
        """Remove a body that waited in storage: the manifest holds it, and the record leads there no more."""
        if record.body_at is None:
            return
        try:
            self.storage.remove([record.body_at])
        except OutkeepError as error:
            facts = _facts(record.kind, record.id) | {"object": record.body_at, "code": error.code}
            log.info(
                "a body that is stored could not be removed from where it waited; the sweep will",
                extra=facts,
            )

    def commit(self, run: Run, ended: Sequence[KeptFile], inputs: Sequence[KeptFile] = ()) -> Manifest:
        """Write the manifest over files that lie in storage already; gives back the one that counts."""
        prediction, record = run.prediction, run.record
        text = joined_text(prediction.output)
        text_file = self.keeper.keep_text(record.kind, record.id, text) if text is not None else None
        places = [wanted.place for wanted in run.files]
        kept = list(zip(places, ended, strict=True))
        gone = "too_many_files" if run.more else "data_removed" if prediction.output_was_removed else None
        if gone:
            kept.append((OutputFile("/output", ""), KeptFile("/output", None, error=gone)))
        built = manifests.build(
            prediction, kept, text_file, record.receipt, self.clock(), inputs=inputs, links=run.links
        )
        manifest = self.storage.commit(built)
        facts = _facts(record.kind, record.id) | counts(manifest)
        log.log(logging.ERROR if manifest.lost else logging.INFO, "stored", extra=facts)
        if manifest is built:  # else an earlier run has counted it
            self._count(run, manifest)
        return manifest

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

    def _forget(self, kind: Kind, prediction_id: str) -> None:
        """Leave nothing of what this run, or one before it, has stored of a prediction that was removed."""
        erase(self.storage, kind, prediction_id, self.clock())
        log.info("removed meanwhile: nothing is kept", extra=_facts(kind, prediction_id))

    def give_up(self, kind: Kind, prediction_id: str, error: OutkeepError) -> None:
        """Mark the record as failed: trying again by itself cannot help, a replay by the operator may."""
        self.records.move(kind, prediction_id, Move.FAIL, self.clock(), {"error": error.code})
        facts = _facts(kind, prediction_id) | {"code": error.code}
        log.error("given up until it is replayed: %s", error.message, extra=facts)

    def _left(self, manifest: Manifest, record: Record | None, tries: Tries, attempt: int) -> Manifest | Run:
        """What is left to fetch of what is stored; the manifest when that is all of it."""
        now, rules = self.clock().timestamp(), self.collector.rules
        return (record and Run.mending(record, manifest, tries, attempt, now, rules=rules)) or manifest

    def _load(
        self, kind: Kind, prediction_id: str, record: Record | None, tries: Tries, attempt: int
    ) -> Manifest | Run:
        """What there is to do; the manifest when it is written meanwhile."""
        body = self._body(record) if record is not None else None
        if record is None or body is None:
            if self.records.is_removed(kind, prediction_id):
                raise Removed(f"{kind} {prediction_id} was removed")
            # Such a run may have ended since.
            manifest = self.storage.read_manifest(kind, prediction_id)
            if manifest is not None:
                return manifest
            raise _without_body(record)
        run = Run.of(
            record,
            parse(body, kind),
            tries,
            attempt,
            self.clock().timestamp(),
            max_files=self.collector.limits.max_files,
            rules=self.collector.rules,
        )
        self.collector.require_room(run)
        return run

    async def _manifest(self, kind: Kind, prediction_id: str, record: Record | None) -> Manifest | None:
        """The manifest; none while a storage that fails cannot tell, if there is something to fetch.

        The hour does not wait until the storage is mended: what it does not take is held on this host.
        """
        try:
            read = partial(self._read, kind, prediction_id, record)
            return await self.storage.run(read, about=manifest_name(kind, prediction_id))
        except StorageFailure:
            if record is None or record.body is None:
                raise
            return None

    def _read(self, kind: Kind, prediction_id: str, record: Record | None) -> Manifest | None:
        manifest = self.storage.read_manifest(kind, prediction_id)
        if manifest is not None and record is not None and manifest.is_overruled_by(record.receipt):
            self.dispatcher.unsay(kind, prediction_id)
            return None
        return manifest

    def _body(self, record: Record) -> bytes | None:
        if record.body_at is not None:
            return claimed(self.storage, record.body_at)
        return record.body

    def _put_off(self, kind: Kind, prediction_id: str, error: Transient | RedisError, attempt: int) -> float:
        delay = store_delay(attempt=attempt, jitter=self.jitter())
        if isinstance(error, Transient):
            code, message = error.code, error.message
        else:
            code, message = "redis_unavailable", f"Redis failed: {type(error).__name__}"
        facts = _facts(kind, prediction_id) | {"code": code}
        log.warning("trying again in %.0f s: %s", delay, message, extra=facts)
        self.tally.add(RETRIES, "persist", code)
        return delay


def _without_body(record: Record | None) -> Permanent:
    if record is not None and record.body_at is not None:
        return Permanent("claim_missing", f"the body that waited in {record.body_at} is gone, or damaged")
    return Permanent("record_missing", "there is neither a manifest nor a record with a body")


def _facts(kind: Kind, prediction_id: str) -> dict[str, str | int]:
    return {"kind": str(kind), "id": prediction_id}
