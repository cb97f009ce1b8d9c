"""One signed POST to a handler."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from app.core import event as events
from app.core.errors import Transient
from app.core.heads import ODD
from app.core.retry_after import retry_after
from app.core.signature import signed_headers
from app.core.targets import Webhook
from app.replicate.guard import network_errors

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
