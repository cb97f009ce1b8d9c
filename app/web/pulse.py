"""`GET /changes`: tells open pages that what they show is out of date, and no more than that.

A page asks for itself anew then. The stream of the API has every change: at the full speed of the line, each
of ten pages would be sent thousands a second for nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from app.accept.changes import Change
from app.core.errors import Transient
from app.web.stream import COMMENT, MOST, Streaming

EVERY = 2.5
"""Seconds between two events for one page; all pages are told at the same time, so that they share what is
read for one."""


@dataclass(eq=False)
class _Page:
    of: str | None
    """The only prediction that it shows, as `<kind>:<id>`."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Pulse:
    """The pages that are open in one process: for its event loop, but for `publish`."""

    _pages: set[_Page] = field(init=False, repr=False, default_factory=set)
    _loop: asyncio.AbstractEventLoop | None = field(init=False, repr=False, default=None)
    _ended: asyncio.Event = field(init=False, repr=False, default_factory=asyncio.Event)

    def publish(self, news: Sequence[Change]) -> None:
        """Wake the pages that these changes concern; from any thread."""
        if self._loop is not None and self._pages:
            refs = {f"{change.kind}:{change.id}" for change in news}
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._wake, refs)

    def _wake(self, refs: set[str]) -> None:
        for page in self._pages:
            if page.of is None or page.of in refs:
                page.changed.set()

    def close(self) -> None:
        """End all at once; called in the loop."""
        self._ended.set()
        for page in self._pages:
            page.changed.set()

    async def answer(self, request: Request) -> Response:
        """The events; raises `Transient` for one page too many."""
        self._loop = asyncio.get_running_loop()
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        if request.method == "HEAD":
            return Response(headers=headers, media_type="text/event-stream")
        if self._ended.is_set() or len(self._pages) >= MOST:
            raise Transient("too_many_streams", f"{MOST} pages are told of changes already", retry_after=5)
        page = _Page(request.query_params.get("of") or None)
        self._pages.add(page)
        return Streaming(
            self._events(page),
            headers=headers,
            media_type="text/event-stream",
            ended=lambda: self._pages.discard(page),
        )

    async def _events(self, page: _Page) -> AsyncIterator[bytes]:
        yield b"retry: 3000\n\n"
        while not self._ended.is_set():
            try:
                await asyncio.wait_for(page.changed.wait(), COMMENT)
            except TimeoutError:
                yield b": still here\n\n"
                continue
            if self._ended.is_set():
                return
            page.changed.clear()
            yield b"data: changed\n\n"
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), EVERY - asyncio.get_running_loop().time() % EVERY)
