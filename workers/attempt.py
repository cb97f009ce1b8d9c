"""One signed POST to one handler, made afresh each time, and how it ended."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

import aiohttp

from app.core import event as events
from app.core.errors import OutkeepError, Permanent, Transient
from app.core.handlers import Handler
from app.core.links import LinkKeys, file_path, sign_path
from app.core.manifest import Manifest, format_time
from app.core.names import Kind, notification_id
from app.core.retry_after import retry_after
from app.core.signature import signed_headers
from app.guard import network_errors
from app.storage import Storage

TIMEOUT = 30.0
"""Seconds that a handler has to answer."""

MAX_ANSWER = 20_000
READING = 2.0
"""Bytes and seconds that the body of an answer gets; its status alone decides."""

LINK_LIFE = 8 * 86400
"""Seconds for which a link in an event is good: seven days are promised."""


@dataclass(frozen=True)
class Attempt:
    """How one POST ended; kept in the job's `meta`. `error` is a code, None for success."""

    at: str
    status: int | None
    error: str | None
    detail: str
    milliseconds: int


@dataclass(frozen=True)
class Sender:
    """What an attempt is made with."""

    session: aiohttp.ClientSession
    storage: Storage
    handlers: Mapping[str, Handler]
    links: LinkKeys
    base_url: str
    clock: Callable[[], datetime]
    timeout: float = TIMEOUT

    async def attempt(
        self, handler_name: str, kind: Kind, prediction_id: str
    ) -> tuple[Attempt, float | None]:
        """Tell a handler, and how many seconds it asks us to wait.

        Raises `Transient` when our own storage fails; then nothing was sent.
        """
        at, began = self.clock(), time.monotonic()
        status, asked = None, None
        failure: OutkeepError | None = None
        try:
            handler = self._handler(handler_name)
            body = await asyncio.to_thread(self._body, kind, prediction_id)
            status, asked = await self._post(
                handler, notification_id(handler_name, kind, prediction_id), body
            )
            if not 200 <= status < 300:  # noqa: PLR2004
                failure = Permanent(f"status_{status}", f"the handler answered {status}")
        except OutkeepError as error:
            if error.code.startswith("storage_"):
                raise
            failure = error
        spent = round((time.monotonic() - began) * 1000)
        code, detail = (failure.code, failure.message) if failure else (None, "")
        return Attempt(format_time(at), status, code, detail, spent), asked

    def _handler(self, name: str) -> Handler:
        if name not in self.handlers:
            raise Permanent("handler_unknown", f"the handlers file has no handler {name!r} any more")
        return self.handlers[name]

    def _body(self, kind: Kind, prediction_id: str) -> bytes:
        manifest = self.storage.read_manifest(kind, prediction_id)
        if manifest is None:
            raise Permanent("manifest_missing", f"nothing is stored of {kind} {prediction_id}")
        return events.encode(events.build(manifest, self._link(manifest)))

    def _link(self, manifest: Manifest) -> events.Link:
        expires = int(self.clock().timestamp()) + LINK_LIFE
        prediction = manifest.prediction

        def link(name: str) -> str:
            return self.base_url + sign_path(
                file_path(prediction.kind, prediction.id, name), expires, self.links
            )

        return link

    async def _post(self, handler: Handler, webhook_id: str, body: bytes) -> tuple[int, float | None]:
        """The status of the answer, and how many seconds it asks us to wait."""
        now = self.clock().timestamp()
        headers = signed_headers(webhook_id, int(now), body, handler.keys)
        headers |= {"content-type": "application/json", "user-agent": "Outkeep"}
        try:
            async with asyncio.timeout(self.timeout):
                return await self._send(handler, body, headers, now)
        except TimeoutError:
            raise Transient("timeout", f"no answer within {self.timeout:.0f} s") from None

    async def _send(
        self, handler: Handler, body: bytes, headers: dict[str, str], now: float
    ) -> tuple[int, float | None]:
        request = self.session.post(handler.url, data=body, headers=headers, allow_redirects=False)
        with network_errors(urlsplit(handler.url).hostname or handler.name):
            async with request as answer:
                await _finish_reading(answer.content)
                return answer.status, retry_after(answer.headers.get("retry-after"), now=now)


async def _finish_reading(content: aiohttp.StreamReader) -> None:
    """Read a short answer to its end, so that its connection serves again. What it says does not count."""
    room = MAX_ANSWER
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(READING):
            while room > 0 and (block := await content.read(room)):
                room -= len(block)
