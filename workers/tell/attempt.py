"""One attempt to notify a handler: a signed POST, and what its answer means."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
from redis import Redis

from app.accept import queues
from app.accept.records import LARGE
from app.core import event as events
from app.core.answers import retry_after
from app.core.errors import Crowded, OutkeepError, Permanent, StorageFailure, Transient
from app.core.handlers import Call, Handler, Webhook
from app.core.heads import ODD
from app.core.manifest import Manifest, format_time
from app.core.names import Kind, manifest_name, notification_id
from app.core.policy import UNCOUNTED
from app.core.signature import signed_headers
from app.replicate.guard import network_errors
from app.storage.store import Storage
from workers.tell.follow import Follow, Links

TIMEOUT = 30.0
"""Seconds that a handler has to answer."""

MAX_ANSWER = 20_000
READING = 2.0
"""Bytes and seconds that the body of an answer gets; its status alone decides."""

log = logging.getLogger("outkeep.notify")


@dataclass(frozen=True)
class Post:
    """What it is sent with."""

    session: aiohttp.ClientSession
    clock: Callable[[], datetime]
    timeout: float = TIMEOUT

    async def send(
        self, webhook: Webhook, webhook_id: str, event: dict[str, Any]
    ) -> tuple[int, float | None]:
        """The status of the answer, and how many seconds it asks us to wait. Raises `OutkeepError`."""
        body = events.encode(event)
        now = self.clock().timestamp()
        headers = signed_headers(webhook_id, int(now), body, webhook.keys)
        headers |= {"content-type": "application/json", "user-agent": "Outkeep"}
        try:
            async with asyncio.timeout(self.timeout):
                return await self._send(webhook.url, body, headers, now)
        except TimeoutError:
            raise Transient("timeout", f"no answer within {self.timeout:.0f} s") from None

    async def _send(
        self, url: str, body: bytes, headers: dict[str, str], now: float
    ) -> tuple[int, float | None]:
        request = self.session.post(url, data=body, headers=headers, allow_redirects=False)
        with network_errors(urlsplit(url).hostname or url):
            async with request as answer:
                odd = answer.headers.get(ODD) or await _finish_reading(answer.content)
                if odd:
                    facts = {"host": urlsplit(url).hostname, "status": answer.status, "odd": odd}
                    log.warning("a handler answers oddly, and its status counts", extra=facts)
                return answer.status, retry_after(answer.headers.get("retry-after"), now=now)


async def _finish_reading(content: aiohttp.StreamReader) -> str:
    """Read a short answer to its end, so that its connection serves again; what was wrong with it.

    What it says does not count.
    """
    room = MAX_ANSWER
    try:
        async with asyncio.timeout(READING):
            while room > 0 and (block := await content.read(room)):
                room -= len(block)
    except TimeoutError:
        return f"a body that does not end within {READING:.0f} s"
    except aiohttp.ClientError as error:
        return f"a body that is not whole ({type(error).__name__})"
    return ""


LARGE_AT_ONCE = 4
"""Manifests of more than `LARGE` bytes that are worked on at the same time, for events and for follow-ups
each; they may hold many megabytes."""


MAX_DETAIL = 500
"""Characters of what is said of a failure: others choose the words, and Redis keeps them."""

T = TypeVar("T")


@dataclass(frozen=True)
class Delivery:
    """What the handler named `handler` is told about, by the notify job with the id `job`."""

    handler: str
    kind: Kind
    id: str
    job: str


@dataclass(frozen=True)
class Attempt:
    """How one attempt ended; kept in the job's `meta`. `error` is a code, None for success."""

    at: str
    status: int | None
    error: str | None
    detail: str
    milliseconds: int


@dataclass(frozen=True)
class Result:
    """What followed from an attempt. `asked`: how many seconds the other side asks us to wait.

    `child`: the follow-up prediction. `handed_on`: the outcome is that of the user's job. `stored_at`: since
    when there was something to tell.
    """

    status: int | None = None
    asked: float | None = None
    child: str | None = None
    handed_on: bool = False
    stored_at: datetime | None = None


@dataclass(frozen=True)
class Attempts:
    """What an attempt is made with; `follow` is None where no handler makes follow-ups."""

    redis: Redis
    storage: Storage
    handlers: Mapping[str, Handler]
    links: Links
    post: Post
    follow: Follow | None
    clock: Callable[[], datetime]
    _telling: asyncio.Semaphore = field(
        init=False, repr=False, default_factory=partial(asyncio.Semaphore, LARGE_AT_ONCE)
    )
    # Of their own: a follow-up may upload for minutes, which a webhook cannot wait for.
    _following: asyncio.Semaphore = field(
        init=False, repr=False, default_factory=partial(asyncio.Semaphore, LARGE_AT_ONCE)
    )

    async def make(self, delivery: Delivery) -> tuple[Attempt, Result]:
        """Do what the handler wants.

        Raises `StorageFailure`, `Transient` when the attempt must not count, and redis-py's errors.
        Then nothing was done, or what was done is found again.
        """
        at, began = self.clock(), time.monotonic()
        result = Result()
        failure: OutkeepError | None = None
        try:
            result = await self._act(delivery, self._handler(delivery.handler))
            if result.status is not None and not 200 <= result.status < 300:  # noqa: PLR2004
                failure = Permanent(f"status_{result.status}", f"the handler answered {result.status}")
        except OutkeepError as error:
            if isinstance(error, StorageFailure | Crowded) or error.code in UNCOUNTED:
                raise
            failure = error
        spent = round((time.monotonic() - began) * 1000)
        code, detail = (failure.code, failure.message[:MAX_DETAIL]) if failure else (None, "")
        return Attempt(format_time(at), result.status, code, detail, spent), result

    async def _act(self, delivery: Delivery, handler: Handler) -> Result:
        match handler.target:
            case Webhook() as webhook:
                webhook_id = notification_id(delivery.handler, delivery.kind, delivery.id)
                if webhook.format == "replicate":
                    # It may be as large as what Replicate sent: few of those are in memory at a time.
                    async with self._room(delivery, self._telling):
                        event, stored_at = await self._built(delivery, events.as_replicate_sends_it)
                        return Result(*await self.post.send(webhook, webhook_id, event), stored_at=stored_at)
                event, stored_at = await self._event(delivery)
                return Result(*await self.post.send(webhook, webhook_id, event), stored_at=stored_at)
            case Call() as call:
                event, stored_at = await self._event(delivery)
                names = {"handler": handler.name, "notify_id": delivery.job}
                job = queues.handle_job(self.redis, call, event, **names)
                # Known already: an earlier run of this job was killed after it had handed the event on.
                await asyncio.to_thread(queues.enqueue, self.redis, job)
                return Result(handed_on=True, stored_at=stored_at)
            case _:
                if self.follow is None:
                    raise Permanent("api_refused", "REPLICATE_API_TOKEN is not set")
                async with self._room(delivery, self._following):
                    manifest = await self._stored(partial(self._manifest, delivery), delivery)
                    child = await self.follow.make(handler, manifest)
                    return Result(child=child, stored_at=manifest.stored_at)

    async def _event(self, delivery: Delivery) -> tuple[dict[str, Any], datetime]:
        """What the handler is told, and since when; of a large manifest no more than that stays in memory."""
        async with self._room(delivery, self._telling):
            return await self._built(delivery, events.build)

    async def _built(
        self, delivery: Delivery, build: Callable[[Manifest, events.Link], dict[str, Any]]
    ) -> tuple[dict[str, Any], datetime]:
        def read_and_build() -> tuple[dict[str, Any], datetime]:
            manifest = self._manifest(delivery)
            return build(manifest, self.links(manifest)), manifest.stored_at

        return await self._stored(read_and_build, delivery)

    @asynccontextmanager
    async def _room(self, delivery: Delivery, places: asyncio.Semaphore) -> AsyncIterator[None]:
        """Wait for one of the `places`, if the manifest is large."""
        name = manifest_name(delivery.kind, delivery.id)
        stored = await self._stored(partial(self.storage.head, name), delivery)
        async with places if stored is not None and stored.size > LARGE else nullcontext():
            yield

    async def _stored(self, work: Callable[[], T], delivery: Delivery) -> T:
        return await self.storage.run(work, about=manifest_name(delivery.kind, delivery.id))

    def _handler(self, name: str) -> Handler:
        if name not in self.handlers:
            raise Permanent("handler_unknown", f"the handlers file has no handler {name!r} any more")
        return self.handlers[name]

    def _manifest(self, delivery: Delivery) -> Manifest:
        manifest = self.storage.read_manifest(delivery.kind, delivery.id)
        if manifest is None:
            raise Permanent("manifest_missing", f"nothing is stored of {delivery.kind} {delivery.id}")
        return manifest
