"""Keep what one prediction produced: load → fetch all → store all → manifest → record → dispatch."""

import asyncio
import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from redis import Redis

from app import queues
from app.core import content, media
from app.core import manifest as manifests
from app.core.data_uri import decode_data_uri
from app.core.errors import OutkeepError, Permanent, Transient
from app.core.handlers import Handler, interested
from app.core.lifecycle import Move
from app.core.manifest import KeptFile, Manifest
from app.core.names import TEXT_NAME, Kind, object_name, outcome_name, output_name
from app.core.outputs import OutputFile, find_files, joined_text
from app.core.policy import attempt_timeout, fetch_delay, keep_until, store_delay
from app.core.prediction import Prediction, parse
from app.records import Record, Records
from app.storage import Storage
from workers.fetch import Fetcher

PARALLEL_FILES = 8
"""Downloads of one prediction at a time; one with 249 files must not starve the others."""

log = logging.getLogger("outkeep.persist")


@dataclass(frozen=True)
class Limits:
    """Bounds set by the operator."""

    max_files: int
    disk_floor: int | None
    """Bytes that stay free; None: the larger of 1 GiB and 5 % of the disk."""


@dataclass(frozen=True)
class Persist:
    """What the job works with. Running twice, or two at once, ends in the same objects."""

    redis: Redis
    records: Records
    storage: Storage
    fetcher: Fetcher
    handlers: Sequence[Handler]
    folder: Path
    limits: Limits
    clock: Callable[[], datetime]
    jitter: Callable[[], float]

    async def run(self, kind: Kind, prediction_id: str, *, attempt: int) -> float | None:
        """Do what is left to do; seconds to wait before the next run, or None when all is done.

        `attempt` counts the runs of this job from 1.
        """
        try:
            manifest = await asyncio.to_thread(self.storage.read_manifest, kind, prediction_id)
            if manifest is None:
                record = await asyncio.to_thread(self.records.get, kind, prediction_id)
                if record is None or record.body is None:
                    log.error(
                        "nothing is known of it, so nothing can be kept", extra=_facts(kind, prediction_id)
                    )
                    return None
                kept = await self._keep(record, parse(record.body, kind), attempt)
                if isinstance(kept, float):
                    return kept
                manifest = kept
            await asyncio.to_thread(self._dispatch, manifest)
        except Transient as error:
            facts = _facts(kind, prediction_id) | {"code": error.code}
            log.warning("trying again later: %s", error.message, extra=facts)
            return store_delay(attempt=attempt, jitter=self.jitter())
        return None

    def give_up(self, kind: Kind, prediction_id: str, error: OutkeepError) -> None:
        """Mark the record as failed: trying again by itself cannot help, a replay by the operator may."""
        self.records.move(kind, prediction_id, Move.FAIL, self.clock(), {"error": error.code})
        facts = _facts(kind, prediction_id) | {"code": error.code}
        log.error("given up until it is replayed: %s", error.message, extra=facts)

    async def _keep(self, record: Record, prediction: Prediction, attempt: int) -> Manifest | float:
        """Fetch and store all files; the committed manifest, or seconds to wait before trying again."""
        await asyncio.to_thread(self._check_disk)
        ends = keep_until(prediction.completed_at, record.received_at)
        seconds = attempt_timeout((ends - self.clock()).total_seconds())
        places = list(find_files(prediction.output))
        gate = asyncio.Semaphore(PARALLEL_FILES)
        results = await asyncio.gather(
            *(self._keep_one(record, number, place, seconds, gate) for number, place in enumerate(places))
        )
        remaining = (ends - self.clock()).total_seconds()
        files: list[KeptFile] = []
        delays = []
        for place, result in zip(places, results, strict=True):
            if isinstance(result, KeptFile):
                files.append(result)
                continue
            delay = fetch_delay(result, attempt=attempt, remaining=remaining, jitter=self.jitter())
            _report(prediction, place, result, delay)
            if delay is None:
                files.append(KeptFile(place.pointer, _source(place), error=result.code))
            else:
                delays.append(delay)
        if delays:
            decided = {file.pointer: asdict(file) for file in files}
            await asyncio.to_thread(self.records.keep, prediction.kind, prediction.id, decided)
            return min(delays)
        return await asyncio.to_thread(
            self._commit, record, prediction, list(zip(places, files, strict=True))
        )

    async def _keep_one(
        self, record: Record, number: int, place: OutputFile, seconds: float, gate: asyncio.Semaphore
    ) -> KeptFile | OutkeepError:
        known = record.kept.get(place.pointer)
        if known is not None and known["source"] == _source(place):
            return KeptFile(**known)
        if number >= self.limits.max_files:
            return Permanent(
                "too_many_files", f"only {self.limits.max_files} files are kept (OUTKEEP_MAX_FILES)"
            )
        async with gate:
            try:
                if place.is_inline:
                    return await asyncio.to_thread(self._store_inline, record, number, place)
                return await self._download(record, number, place, seconds)
            except OutkeepError as error:
                if error.code.startswith(("storage_", "disk_")):
                    raise  # our own trouble: it says nothing about the file
                return error

    async def _download(self, record: Record, number: int, place: OutputFile, seconds: float) -> KeptFile:
        fetched = await self.fetcher.fetch(place.source, timeout=seconds)
        try:
            extension = media.extension(fetched.head, url_path=urlsplit(place.source).path)
            name = output_name(number, extension)
            await asyncio.to_thread(
                self.storage.put_file, object_name(record.kind, record.id, name), fetched.path
            )
        finally:
            await asyncio.to_thread(fetched.path.unlink, missing_ok=True)
        return KeptFile(
            place.pointer, place.source, name, media.media_type(extension), fetched.size, fetched.sha256
        )

    def _store_inline(self, record: Record, number: int, place: OutputFile) -> KeptFile:
        declared, data = decode_data_uri(place.source)
        hint = media.extension_for_media_type(declared) or media.UNKNOWN
        extension = media.extension(data[: content.HEAD], url_path=f"output.{hint}")
        return self._store_bytes(record, place.pointer, _source(place), output_name(number, extension), data)

    def _store_bytes(
        self, record: Record, pointer: str, source: str | None, name: str, data: bytes
    ) -> KeptFile:
        self.storage.put_bytes(object_name(record.kind, record.id, name), data)
        media_type = media.media_type(name.rpartition(".")[2])
        return KeptFile(pointer, source, name, media_type, len(data), hashlib.sha256(data).hexdigest())

    def _commit(
        self, record: Record, prediction: Prediction, kept: Sequence[tuple[OutputFile, KeptFile]]
    ) -> Manifest:
        text = joined_text(prediction.output)
        text_file = (
            self._store_bytes(record, "/output", None, TEXT_NAME, text.encode()) if text is not None else None
        )
        manifest = self.storage.commit(
            manifests.build(prediction, kept, text_file, record.receipt, self.clock())
        )
        facts = _facts(prediction.kind, prediction.id) | {
            "files": len(manifest.kept),
            "lost": len(manifest.lost),
        }
        log.log(logging.ERROR if manifest.lost else logging.INFO, "stored", extra=facts)
        return manifest

    def _dispatch(self, manifest: Manifest) -> None:
        prediction = manifest.prediction
        place = (prediction.kind, prediction.id)
        counts = {"files": len(manifest.kept), "lost": len(manifest.lost)}
        self.records.move(*place, Move.STORE, self.clock(), counts)
        for handler in interested(self.handlers, prediction):
            # An outcome file outlives every record, so that nobody is told twice when Redis was emptied.
            if self.storage.head(object_name(*place, outcome_name(handler.name))) is None:
                queues.enqueue_notify(self.redis, handler.name, *place)
        self.records.move(*place, Move.DISPATCH, self.clock())

    def _check_disk(self) -> None:
        usage = shutil.disk_usage(self.folder)
        floor = self.limits.disk_floor
        if floor is None:
            floor = max(1 << 30, usage.total // 20)
        if usage.free < floor:
            raise Transient(
                "disk_floor",
                f"only {usage.free >> 20} MiB are free on the disk of {self.folder}; below {floor >> 20} MiB "
                "nothing is fetched (OUTKEEP_DISK_FLOOR): make room",
            )


def _source(place: OutputFile) -> str:
    """What the manifest names as the source: a `data:` URI by its hash, since it stands in the prediction."""
    if not place.is_inline:
        return place.source
    media_type = place.source[5:].partition(",")[0].partition(";")[0].lower()
    try:
        data = decode_data_uri(place.source)[1]
    except Permanent:
        data = place.source.encode()
    return f"data:{media_type};sha256={hashlib.sha256(data).hexdigest()}"


def _report(prediction: Prediction, place: OutputFile, error: OutkeepError, delay: float | None) -> None:
    facts = _facts(prediction.kind, prediction.id) | {"pointer": place.pointer, "code": error.code}
    if delay is None:
        log.error("an output is lost: %s", error.message, extra=facts)
    else:
        log.warning("trying again in %.0f s: %s", delay, error.message, extra=facts)


def _facts(kind: Kind, prediction_id: str) -> dict[str, str | int]:
    return {"kind": str(kind), "id": prediction_id}
