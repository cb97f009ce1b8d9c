"""What leaves from here when somebody asks for it: a prediction run again, and a sample for a handler.

Imported when it is first needed: a receiver does neither.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from redis import Redis

from app.accept.claim_check import ClaimCheck
from app.accept.records import Records
from app.core import event as events
from app.core.context import RERUN_OF, RESERVED, context_keys, webhook_url
from app.core.errors import OutkeepError, Permanent, Rejected, Transient, Unusable
from app.core.handlers import Handler, Webhook
from app.core.links import link_keys, signed_url
from app.core.manifest import KeptFile, Manifest, Receipt
from app.core.names import Kind, notification_id, object_name
from app.core.prediction import Prediction
from app.core.request import Model, parse_model, parse_runnable
from app.core.signature import signed_headers
from app.replicate.creation import UNCERTAIN, CreationLimit, Creator, creating
from app.replicate.following import Follower
from app.replicate.guard import guarded_session, network_errors
from app.settings import Settings
from app.storage.store import Storage
from app.web import models
from app.web.actions import unknown

EVENTS = ("start", "output", "logs", "completed")
TIMEOUT = 15.0
"""Seconds that a handler has to answer to a sample; somebody waits for it."""

MOST_UPLOADED = 100 << 20
SAMPLE_ID = "sample"


@dataclass(frozen=True)
class Outgoing:
    """Needs a running loop. Methods raise `OutkeepError`."""

    settings: Settings
    redis: Redis
    records: Records
    storage: Storage
    secret_keys: tuple[bytes, ...] = field(repr=False)
    clock: Callable[[], datetime]

    async def rerun(self, kind: Kind, prediction_id: str, changed: dict[str, Any]) -> models.Rerun:
        """Create a prediction with the same model and input, but for what has changed."""
        if self.settings.api_token is None:
            message = "REPLICATE_API_TOKEN is not set, and nothing can be run without it"
            raise Rejected("token_missing", message, status=409)
        manifest = await asyncio.to_thread(self.storage.read_manifest, kind, prediction_id)
        if manifest is None:
            raise unknown(kind, prediction_id)
        model = _model(manifest.prediction)
        wait = await asyncio.to_thread(CreationLimit(self.redis).take)
        if wait > 0:
            reason = "Replicate takes no more creations in this minute"
            raise Transient("creations_limited", reason, retry_after=wait)
        context = self._context(manifest)
        async with creating(self.settings.api_url, self.settings.api_token.get_secret_value()) as creator:
            given = await self._input(creator, manifest, changed)
            raw = await self._create(creator, model, given, context)
        await asyncio.to_thread(self._hand_in, raw, context)
        return models.Rerun(
            kind=kind, id=raw["id"], status=str(raw.get("status") or "starting"), parent=prediction_id
        )

    async def _create(
        self, creator: Creator, model: Model, given: dict[str, Any], context: dict[str, Any]
    ) -> dict[str, Any]:
        webhook = None
        if self.settings.public_url is not None:
            keys = context_keys(self.secret_keys)
            webhook = webhook_url(self.settings.public_url, Kind.PREDICTION, context, keys)
        try:
            return dict(await creator.create(model, given, webhook=webhook, events=EVENTS))
        except Transient as error:
            if error.code in UNCERTAIN:
                hint = "it may have been created all the same: look before you try again"
                raise Permanent(error.code, f"{error.message}; {hint}") from error
            raise

    def _context(self, manifest: Manifest) -> dict[str, Any]:
        """What the user gave goes on; what we add says whose rerun it is."""
        given = manifest.receipt.context
        kept = (
            {key: value for key, value in given.items() if key != RESERVED} if isinstance(given, dict) else {}
        )
        return {**kept, RESERVED: {RERUN_OF: manifest.prediction.id}}

    def _hand_in(self, raw: dict[str, Any], context: dict[str, Any]) -> None:
        """Let the live view know what is coming; the webhook, or who asks for it, brings the rest."""
        follower = Follower(
            redis=self.redis,
            records=self.records,
            storage=self.storage,
            claims=ClaimCheck(
                self.storage,
                self.records,
                patience=60.0,
                disk_floor=self.settings.disk_floor,
                clock=self.clock,
            ),
            clock=self.clock,
            context=context,
            awaits_webhook=self.settings.public_url is not None,
            warn=lambda _: None,
        )
        try:
            follower.hand_in(raw)
        except (Transient, Unusable):
            return  # it is paid for, and reconciliation finds it

    async def _input(self, creator: Creator, manifest: Manifest, changed: dict[str, Any]) -> dict[str, Any]:
        given = manifest.prediction.raw.get("input")
        result: Any = {"input": dict(given) if isinstance(given, dict) else {}}
        for file in manifest.kept:
            path = file.pointer.split("/")[1:]
            if file.is_input and path[1:2] and path[1] not in changed:
                _replace(result, path, await self._url(creator, manifest, file))
        return {**result["input"], **changed}

    async def _url(self, creator: Creator, manifest: Manifest, file: KeptFile) -> str:
        """Where Replicate fetches a stored input: from us, from the store, or from itself."""
        prediction, name = manifest.prediction, file.name or ""
        if self.settings.public_url is not None:
            now, keys = self.clock().timestamp(), link_keys(self.secret_keys)
            return signed_url(self.settings.public_url, prediction.kind, prediction.id, name, keys, now=now)
        stored = object_name(prediction.kind, prediction.id, name)
        if self.storage.folder is None:
            link = await asyncio.to_thread(self.storage.link, stored)
            if link is None:
                raise Permanent("input_out_of_reach", "set OUTKEEP_PUBLIC_URL, so that inputs can be fetched")
            return link
        if (file.size or 0) > MOST_UPLOADED:
            raise Permanent("file_too_large", f"{name} is too large for an upload; set OUTKEEP_PUBLIC_URL")
        try:
            path = self.storage.folder / stored
            return await creator.upload(path, name=name, media_type=file.media_type)
        except FileNotFoundError:
            raise Permanent("file_missing", f"{stored} is not in the storage any more") from None

    async def test(self, handler: Handler) -> models.Tested:
        """Send one signed sample to a handler; what came back."""
        if not isinstance(handler.target, Webhook):
            message = f"{handler.name} is no URL: a sample can only be sent to one"
            raise Rejected("no_webhook", message, status=409)
        proxy = self.settings.proxy.get_secret_value() if self.settings.proxy else None
        began = time.monotonic()
        status: int | None = None
        failure: OutkeepError | None = None
        async with guarded_session(
            private=self.settings.notify_private, proxy=proxy, statuses=True
        ) as session:
            try:
                async with asyncio.timeout(TIMEOUT):
                    status = await self._send(session, handler.target, self._sample(handler))
                if not 200 <= status < 300:  # noqa: PLR2004
                    failure = Permanent(f"status_{status}", f"the handler answered {status}")
            except TimeoutError:
                failure = Transient("timeout", f"no answer within {TIMEOUT:.0f} s")
            except OutkeepError as error:
                failure = error
        return models.Tested(
            name=handler.name,
            status=status,
            error=failure.code if failure else None,
            detail=failure.message[:500] if failure else "",
            milliseconds=round((time.monotonic() - began) * 1000),
        )

    async def _send(self, session: aiohttp.ClientSession, webhook: Webhook, event: dict[str, Any]) -> int:
        body = events.encode(event)
        webhook_id = notification_id("sample", Kind.PREDICTION, SAMPLE_ID)
        headers = signed_headers(webhook_id, int(self.clock().timestamp()), body, webhook.keys)
        headers |= {"content-type": "application/json", "user-agent": "Outkeep"}
        with network_errors(urlsplit(webhook.url).hostname or webhook.url):
            async with session.post(webhook.url, data=body, headers=headers, allow_redirects=False) as answer:
                return answer.status

    def _sample(self, handler: Handler) -> dict[str, Any]:
        now = self.clock()
        raw = {
            "id": SAMPLE_ID, "status": sorted(handler.on or {"succeeded"})[-1], "model": "outkeep/sample",
            "input": {"prompt": "a sample that Outkeep was asked to send"}, "output": "a sample", "logs": "",
            "created_at": (now - timedelta(seconds=1)).isoformat(), "completed_at": now.isoformat(),
        }  # fmt: skip
        prediction = Prediction(handler.kind or Kind.PREDICTION, SAMPLE_ID, str(raw["status"]), raw)
        manifest = Manifest(prediction, (), raw["output"], Receipt(now, None), now)
        webhook = handler.target
        if isinstance(webhook, Webhook) and webhook.format == "replicate":
            return events.as_replicate_sends_it(manifest, str)
        return events.build(manifest, str)


def _model(prediction: Prediction) -> Model:
    """What ran it; a version that is hidden, or a deployment's word, cannot be asked for."""
    if prediction.kind is not Kind.PREDICTION:
        raise Rejected("training", "a training is not run again from here", status=409)
    version = prediction.version or ""
    model = parse_runnable(version) or parse_model(prediction.model or "")
    if model is None:
        raise Rejected("model_unknown", "its object does not say which model made it", status=409)
    return model


def _replace(value: Any, path: list[str], url: str) -> None:
    """Put `url` where an RFC 6901 pointer leads; nowhere if it leads nowhere."""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in path]
    for part in parents:
        child = _child(value, part)
        if child is None:
            return
        copied: Any = (
            dict(child) if isinstance(child, dict) else list(child) if isinstance(child, list) else child
        )
        _put(value, part, copied)
        value = copied
    if _child(value, last) is not None:
        _put(value, last, url)


def _child(value: Any, part: str) -> Any:
    if isinstance(value, dict):
        return value.get(part)
    return (
        value[int(part)] if isinstance(value, list) and part.isdecimal() and int(part) < len(value) else None
    )


def _put(value: Any, part: str, new: Any) -> None:
    value[int(part) if isinstance(value, list) else part] = new
