"""Keep the files that went into a prediction, beside its outputs and without holding those up.

Outputs are gone after an hour, inputs mostly belong to the user: so an input is tried while outputs are on
their way and a little longer, and what is not there then is told as lost.

Inputs also come from our own storage and from Replicate's files. Replicate's OpenAPI document (2026-03-16)
says that `GET /v1/files/{id}` describes a file, and that `GET /v1/files/{id}/download` gives it to whoever
has a signature. What the latter says to the token of the owner is not known, nor whether the former ever
gives the file itself: both are taken as they come, and bytes are only kept if they fit the description.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import count, islice
from pathlib import Path

from redis.exceptions import RedisError

from app.accept.records import LiveRecords
from app.core.answers import Body, Unconfirmed
from app.core.errors import Crowded, OutkeepError, Permanent, Transient
from app.core.inputs import Uploads, description, find_inputs, upload_id
from app.core.links import LinkKeys, linked_object
from app.core.manifest import KeptFile
from app.core.names import MANIFEST_NAME, input_stem
from app.core.outputs import SHOWN
from app.core.policy import INPUT_PATIENCE, LATE_ATTEMPT, input_delay
from app.core.shares import Shares
from app.replicate.places import Places
from app.storage.store import Storage
from workers.keep.collect import Result, Run
from workers.keep.download import Download, Fetched, Memory
from workers.keep.fetch import Fetcher
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

    records: LiveRecords
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
                    await self._remember(run, results)
                    raise
        finally:
            for task in tasks:
                task.cancel()
            faults = await asyncio.gather(*tasks, return_exceptions=True)
        for fault in faults:
            if isinstance(fault, Exception):
                raise fault
        return results, tries

    async def _remember(self, run: Run, results: list[Result]) -> None:
        ended = zip(run.files, results, strict=True)
        kept = {str(one.number): one.noted(file) for one, file in ended if isinstance(file, KeptFile)}
        await self.records.keep(run.record.kind, run.record.id, kept)

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
            await self.records.keep(run.record.kind, run.record.id, kept)

    async def _attempt(self, run: Run, wanted: Wanted, before: Body | None) -> KeptFile:
        if wanted.place.is_inline:
            return await self.keeper.store_inline(wanted)
        fetched = await self.keeper.bring(
            wanted, may_be_parked=run.attempt > 1, timeout=LATE_ATTEMPT, before=before
        )
        return await self.keeper.store(wanted, fetched)


@dataclass(frozen=True)
class OwnFiles:
    """`base_url` is what our links begin with, `folder` for copies; `disk_floor` as `floor_of` has it."""

    storage: Storage
    base_url: str
    keys: LinkKeys
    folder: Path
    disk_floor: int | None
    clock: Callable[[], datetime]
    memory: Memory = field(default_factory=Memory)

    def name_of(self, url: str) -> str | None:
        """The object to which one of our links leads; None for any other URL, and for a link that is over."""
        return linked_object(url, self.base_url, self.keys, now=self.clock().timestamp())

    async def copy(self, name: str, url: str) -> Fetched:
        """A copy of an object, as if it had been downloaded from `url`.

        Raises `Permanent` (`not_found`), and what the storage and `Download` raise.
        """
        stored = await self.storage.run(partial(self.storage.head, name), about=name)
        if stored is None:
            raise Permanent("not_found", f"{name} is not in the storage any more")
        download = Download(self.folder, self.memory, floor=self.disk_floor, expected=stored.size)
        try:
            await download.open()
            async for piece in self.storage.stream(name, 0, stored.size):
                await download.add([piece], len(piece))
            await download.close()
            folder, _, file = name.rpartition("/")
            encodings = await asyncio.to_thread(self.storage.encodings, f"{folder}/{MANIFEST_NAME}")
        except BaseException:
            await download.discard()
            raise
        return download.fetched(None, url, encoding=encodings.get(file))


MAX_DESCRIPTION = 1 << 20
"""Bytes up to which an answer may be the description of a file."""


@dataclass(frozen=True)
class InputFetcher:
    """`uploads` is None without a token; `base_url` is the API's."""

    fetcher: Fetcher
    base_url: str
    uploads: Uploads | None
    own: OwnFiles

    async def fetch(self, url: str, *, timeout: float, before: Body | None = None) -> Fetched:  # noqa: ASYNC109 - the fetcher's
        """Download an input in at most about `timeout` seconds.

        Raises what `Fetcher.fetch` raises, and `Permanent` (`token_missing`, `upload_mismatch`).
        """
        name, identity = self.own.name_of(url), upload_id(url, self.base_url)
        if name is None and identity is None:
            return await self.fetcher.fetch(url, timeout=timeout, before=before)
        try:
            async with asyncio.timeout(timeout):
                if name is not None:
                    return await self.own.copy(name, url)
                return await self._open(identity or "", timeout)
        except TimeoutError:
            raise Transient("deadline", f"the download did not end within {timeout:.0f} s") from None

    async def _open(self, identity: str, patience: float) -> Fetched:
        uploads = self.uploads
        if uploads is None:
            raise Permanent("token_missing", "files uploaded to Replicate open to REPLICATE_API_TOKEN only")
        url = uploads.url(identity)
        answer = await self.fetcher.fetch(url, timeout=patience, uploads=uploads)
        if answer.size > MAX_DESCRIPTION:
            return answer
        described = description(await asyncio.to_thread(answer.read), identity)
        if described is None:
            return answer
        answer.remove()
        content = await self.fetcher.fetch(f"{url}/download", timeout=patience, uploads=uploads)
        if not described.fits(content.size, content.digest()):
            content.remove()
            raise Permanent("upload_mismatch", "what the API gave is not the file that it described")
        return replace(content, name=described.name)
