"""Create one follow-up prediction for each prediction and handler, with links to stored files or uploads.

Three memories keep it so: the outcome file beside the parent's manifest, which also the arrival of the
follow-up writes; the intent in Redis, written before the API is asked; and Replicate's own list, where a run
that finds an intent without a child looks for what an earlier run may have created.
"""

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

from redis.exceptions import RedisError
from redis.lock import Lock

from app.accept.records import Arrival, Records
from app.core import event as events
from app.core import media, templates
from app.core.context import ContextKeys, Lineage, followed, lineage, webhook_url
from app.core.errors import OutkeepError, Permanent, StorageFailure, Transient
from app.core.handlers import FollowUp, Handler
from app.core.links import LinkKeys, signed_url
from app.core.manifest import KeptFile, Manifest, Receipt, format_time
from app.core.names import DeliveryRef, Kind, object_name
from app.core.outputs import joined_text
from app.core.prediction import from_object, parse_time
from app.core.reconciling import fingerprint
from app.core.request import Model
from app.replicate.client import Api
from app.replicate.creation import UNCERTAIN, CreationLimit, Creator
from app.replicate.follow_ups import LEASE, FollowUps, Intent
from app.storage.store import Storage

Links = Callable[[Manifest], events.Link]
"""From a manifest to what makes links to its files."""


def signed_links(keys: LinkKeys, base_url: str, clock: Callable[[], datetime]) -> Links:
    """Links to our own server, good from now on."""

    def of(manifest: Manifest) -> events.Link:
        prediction, now = manifest.prediction, clock().timestamp()
        return lambda name: signed_url(base_url, prediction.kind, prediction.id, name, keys, now=now)

    return of


MOST = 100 << 20
"""Bytes that Replicate takes as an uploaded file, by its documentation."""


@dataclass(frozen=True)
class HandingOver:
    """What they are uploaded with; `folder` is for copies of what a remote store holds."""

    creator: Creator
    storage: Storage
    folder: Path

    async def upload(self, manifest: Manifest, file: KeptFile) -> str:
        """Upload a stored file; the URL that stands for it in an input. Raises `OutkeepError`."""
        assert file.name is not None
        size = file.size or 0
        if size > MOST:
            raise Permanent(
                "file_too_large",
                f"{file.name} has {size >> 20} MiB, and Replicate takes uploads of {MOST >> 20} MiB; "
                "set OUTKEEP_PUBLIC_URL, and a link is given instead",
            )
        name = object_name(manifest.prediction.kind, manifest.prediction.id, file.name)
        called, media_type = file.name, file.media_type
        if file.encoding is not None:
            # An upload carries no coding beside the bytes: its name and type have to say it.
            packed = media.packed(file.encoding)
            called, media_type = f"{file.name}.{packed}", media.media_type(packed)
        async with self._at_hand(name) as path:
            try:
                return await self.creator.upload(path, name=called, media_type=media_type)
            except FileNotFoundError:
                raise Permanent("file_missing", f"{name} is not in the storage any more") from None

    @asynccontextmanager
    async def _at_hand(self, name: str) -> AsyncIterator[Path]:
        """A path of this host that holds a stored object."""
        if self.storage.folder is not None:
            yield self.storage.folder / name
            return
        stored = await asyncio.to_thread(self.storage.head, name)
        if stored is None:
            raise Permanent("file_missing", f"{name} is not in the storage any more")
        path = await asyncio.to_thread(self._draft)
        try:
            await self._copy(name, stored.size, path)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _draft(self) -> Path:
        descriptor, path = tempfile.mkstemp(prefix="upload-", suffix=".part", dir=self.folder)
        os.close(descriptor)
        return Path(path)

    async def _copy(self, name: str, size: int, path: Path) -> None:
        try:
            with path.open("wb") as target:
                async for piece in self.storage.stream(name, 0, size):
                    await asyncio.to_thread(target.write, piece)
        except OSError as error:
            raise StorageFailure("storage_full", f"no room to copy {name}: {error.strerror}") from error


DEEPEST = 10
"""How many follow-ups may follow one another: a handler that wants what it has made would go on for ever."""

SETTLE = 120.0
"""Seconds after which Replicate's list shows a prediction if it was created."""

LOOK_BACK = timedelta(hours=1)
"""How long before an intent the search for what came of it begins: times of creation are Replicate's."""

EVENTS = ("completed",)

log = logging.getLogger("outkeep.notify")


@dataclass(frozen=True)
class Follow:
    """What a follow-up is made with. `base_url` is ours as Replicate reaches it; None: it does not."""

    creator: Creator
    api: Api
    follow_ups: FollowUps
    limit: CreationLimit
    records: Records
    storage: Storage
    files: HandingOver
    links: Links
    keys: ContextKeys
    base_url: str | None
    clock: Callable[[], datetime]
    settle: float = SETTLE

    async def make(self, handler: Handler, manifest: Manifest) -> str:
        """Make the follow-up that `handler` wants of a prediction, or find it; its id.

        Raises `Permanent` for what cannot be made, and `Transient`: some only put off, without an attempt.
        """
        target = cast(FollowUp, handler.target)
        ref = (handler.name, manifest.prediction.kind, manifest.prediction.id)
        told = await asyncio.to_thread(self.storage.outcome, *ref)
        if told is not None and told.child is not None:
            return told.child
        async with self._alone(ref) as lease:
            intent = await asyncio.to_thread(self.follow_ups.intent, ref)
            child = await self._earlier(ref, intent) if intent is not None else None
            context = self._context(handler, manifest)
            if child is None:
                child = await self._create(ref, lease, target, manifest, context)
            await asyncio.to_thread(self._note, child, target.model, context)
            return child

    async def _earlier(self, ref: DeliveryRef, intent: Intent) -> str | None:
        """What an earlier run has created; None when it has created nothing.

        Raises `Transient` (`follow_up_sought`) while that cannot be told.
        """
        if intent.child is not None:
            return intent.child
        try:
            child = await self._find(ref, intent)
        except Permanent as error:
            # Whether it was made is not known then, and never known for good.
            raise Transient("follow_up_sought", f"an earlier run is looked for: {error.message}") from error
        if child is not None:
            log.warning("a follow-up that an earlier run had created is found", extra=_facts(ref, child))
            await asyncio.to_thread(self.follow_ups.remember, ref, intent, child)
            return child
        left = self.settle - (self.clock() - datetime.fromisoformat(intent.at)).total_seconds()
        if left > 0:
            reason = "an earlier run may have created the follow-up, which Replicate does not list yet"
            raise Transient("follow_up_sought", reason, retry_after=min(left, 10.0))
        return None

    async def _create(
        self, ref: DeliveryRef, lease: Lock, target: FollowUp, manifest: Manifest, context: Mapping[str, Any]
    ) -> str:
        wait = await asyncio.to_thread(self.limit.take)
        if wait > 0:
            raise Transient(
                "creations_limited", "as many predictions as may be are created", retry_after=wait
            )
        given = await self._input(target, manifest)
        webhook = self._webhook(context)
        intent = Intent(format_time(self.clock()), fingerprint(given), target.model.version, webhook)
        if not await asyncio.to_thread(self.follow_ups.intend, ref, lease, intent):
            raise _busy()
        try:
            created = await self.creator.create(
                target.model, given, webhook=webhook, events=EVENTS, cancel_after=target.cancel_after
            )
        except OutkeepError as error:
            if error.code not in UNCERTAIN:
                await asyncio.to_thread(self.follow_ups.forget, ref)
            raise
        child = str(created["id"])
        log.info("follow-up created", extra=_facts(ref, child))
        await asyncio.to_thread(self.follow_ups.remember, ref, intent, child)
        return child

    async def _input(self, target: FollowUp, manifest: Manifest) -> dict[str, Any]:
        data = events.whole(manifest, self.links(manifest))
        # A number stands for the same output whether others were lost, and whether inputs are kept.
        outputs = [file for file in manifest.files if not file.is_input]
        for number in templates.files_named(target.input, len(outputs)):
            _require_kept(number, outputs[number])
        text = joined_text(manifest.prediction.output)
        if text is not None and not templates.looks_into(target.input, "output"):
            data["output"] = text  # a model that takes a text takes no list of tokens
        entries = {entry["name"]: entry for entry in data["files"]}
        data["files"] = [entries.get(file.name) for file in outputs]
        if self.base_url is None:
            for number in sorted(templates.files_used(target.input, len(outputs))):
                data["files"][number]["url"] = await self.files.upload(manifest, outputs[number])
        return cast(dict[str, Any], templates.render(target.input, data))

    async def _find(self, ref: DeliveryRef, intent: Intent) -> str | None:
        since = datetime.fromisoformat(intent.at) - LOOK_BACK
        async for item in self.api.newest(Kind.PREDICTION, since):
            created = parse_time(item.get("created_at"))
            if created is not None and created < since:
                break
            identity = item.get("id")
            if not isinstance(identity, str) or not _may_be(item, intent):
                continue
            whole = await self.api.one(Kind.PREDICTION, identity)
            if _is(whole, intent) and await asyncio.to_thread(self.follow_ups.claim, ref, identity):
                return identity
        return None

    def _context(self, handler: Handler, manifest: Manifest) -> dict[str, Any]:
        """What is signed into the webhook of the follow-up; raises `Permanent` when the line is too long."""
        prediction, given = manifest.prediction, manifest.receipt.context
        before = lineage(given)
        depth = before.depth + 1 if before else 1
        if depth > DEEPEST:
            raise Permanent(
                "follow_up_too_deep",
                f"it would be follow-up number {depth} in a row, and {DEEPEST} is the most: does handler "
                f"{handler.name!r} want what it makes itself? `model` tells them apart",
            )
        return followed(given, Lineage(prediction.kind, prediction.id, handler.name, depth))

    def _webhook(self, context: Mapping[str, Any]) -> str | None:
        return webhook_url(self.base_url, Kind.PREDICTION, context, self.keys) if self.base_url else None

    def _note(self, child: str, model: Model, context: dict[str, Any]) -> None:
        """Let the live view know what is coming, and what it follows: not every way back tells that."""
        raw = {"id": child, "status": "starting", "model": model.name}
        before = lineage(context)
        receipt = Receipt(
            self.clock(), None, "run", context=context, parent=before.parent if before else None
        )
        is_asked_for = self.base_url is None  # it has no webhook, then
        arrival = Arrival(from_object(raw, Kind.PREDICTION), b"", receipt, None, is_asked_for=is_asked_for)
        self.records.accept([arrival], self.clock())

    @asynccontextmanager
    async def _alone(self, ref: DeliveryRef) -> AsyncIterator[Lock]:
        """Hold the lease of one follow-up; raises `Transient` while another run does."""
        lease = self.follow_ups.lease(ref)
        if not await asyncio.to_thread(lease.acquire, blocking=False):
            raise _busy()
        renewing = asyncio.create_task(_renew(lease))
        try:
            yield lease
        finally:
            renewing.cancel()
            with suppress(RedisError):  # else it expires
                await asyncio.to_thread(lease.release)


async def _renew(lease: Lock) -> None:
    while True:
        await asyncio.sleep(LEASE / 4)
        with suppress(RedisError):
            await asyncio.to_thread(lease.reacquire)


def _may_be(item: Mapping[str, Any], intent: Intent) -> bool:
    """Whether an item of a list, which can lack keys and what is long, may be what was intended."""
    if isinstance(item.get("webhook"), str):
        return bool(item["webhook"] == intent.webhook)
    if item.get("input") is None:
        return True
    return fingerprint(item.get("input")) == intent.input


def _is(whole: Mapping[str, Any], intent: Intent) -> bool:
    """Whether a prediction is what was intended: by its webhook, which we signed, else by its whole input."""
    if isinstance(whole.get("webhook"), str):
        return bool(whole["webhook"] == intent.webhook)
    if intent.version is not None and whole.get("version") not in {None, intent.version}:
        return False
    return fingerprint(whole.get("input")) == intent.input


def _require_kept(number: int, file: KeptFile) -> None:
    if file.error is not None:
        raise Permanent("file_lost", f"{{files[{number}]}} was lost ({file.error}): no follow-up is made")


def _busy() -> Transient:
    return Transient("follow_up_running", "another run creates this follow-up", retry_after=5.0)


def _facts(ref: DeliveryRef, child: str) -> dict[str, str]:
    handler, kind, prediction_id = ref
    return {"handler": handler, "kind": str(kind), "id": prediction_id, "child": child}
