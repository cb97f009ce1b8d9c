"""The event stream: every change, as server-sent events that a client can resume.

A client that reads nothing costs one queue of bounded length; when that is full its stream ends, and it comes
again with the id of the last event that it has seen.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field

from redis import Redis
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.accept import changes
from app.accept.changes import Change
from app.core.errors import Rejected, Transient

MOST = 100
"""Streams at the same time."""

QUEUED = 1000
"""Changes that wait for one client."""

RESUMED = 10_000
"""Changes that a client that comes again is told of; of more, it had better read anew."""

COMMENT = 15.0
"""Seconds without a change after which a comment says that the stream lives."""

_POSITION = re.compile(r"[0-9]{1,16}-[0-9]{1,16}", re.ASCII)
_PAGE = 500
_RESET = b"event: reset\ndata: {}\n\n"


@dataclass
class Stream:
    """The streams of one process: for its event loop, but for `publish`."""

    redis: Redis
    comment: float = COMMENT
    _clients: set["asyncio.Queue[Change | None]"] = field(init=False, repr=False, default_factory=set)
    _loop: asyncio.AbstractEventLoop | None = field(init=False, repr=False, default=None)
    _is_ending: bool = field(init=False, repr=False, default=False)

    def publish(self, news: Sequence[Change]) -> None:
        """Tell every client; from any thread."""
        if self._loop is not None and self._clients:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._hand_out, list(news))

    def _hand_out(self, news: Sequence[Change]) -> None:
        for client in list(self._clients):
            for change in news:
                if client.full():
                    self._end(client)
                    break
                client.put_nowait(change)

    def _end(self, client: "asyncio.Queue[Change | None]") -> None:
        """Let a stream end, be it that what waits for its client is never read."""
        self._clients.discard(client)
        while not client.empty():
            client.get_nowait()
        client.put_nowait(None)

    def close(self) -> None:
        """End all streams at once; called in the loop."""
        self._is_ending = True
        for client in list(self._clients):
            self._end(client)

    async def answer(self, request: Request) -> Response:
        """The stream; raises `Rejected` (400) for a position that is none, `Transient` for one too many."""
        self._loop = asyncio.get_running_loop()
        position = request.headers.get("last-event-id")
        if position is not None and not _POSITION.fullmatch(position):
            raise Rejected("bad_position", "Last-Event-ID is no id of an event of ours", status=400)
        if self._is_ending or len(self._clients) >= MOST:
            raise Transient("too_many_streams", f"{MOST} streams are open already", retry_after=5)
        client: asyncio.Queue[Change | None] = asyncio.Queue(QUEUED + 1)
        self._clients.add(client)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        if request.method == "HEAD":
            self._clients.discard(client)
            return Response(headers=headers, media_type="text/event-stream")
        return Streaming(
            self._events(client, position),
            headers=headers,
            media_type="text/event-stream",
            ended=lambda: self._clients.discard(client),
        )

    async def _events(
        self, client: "asyncio.Queue[Change | None]", position: str | None
    ) -> AsyncIterator[bytes]:
        yield b"retry: 2000\n\n"
        if position is not None:
            async for change in self._missed(position):
                position = change.position if change else position
                yield _event(change) if change else _RESET
        while True:
            try:
                change = await asyncio.wait_for(client.get(), self.comment)
            except TimeoutError:
                yield b": still here\n\n"
                continue
            if change is None:
                return
            if position is None or _order(change.position) > _order(position):
                yield _event(change)

    async def _missed(self, position: str) -> AsyncIterator[Change | None]:
        """What has come since `position`; None when it is too long ago, so that all has to be read anew."""
        if not await asyncio.to_thread(changes.is_whole, self.redis, position):
            yield None
            return
        for _ in range(RESUMED // _PAGE):
            news = await asyncio.to_thread(changes.after, self.redis, position, count=_PAGE)
            for change in news:
                position = change.position
                yield change
            if len(news) < _PAGE:
                return
        yield None


class Streaming(StreamingResponse):
    """Says when it has ended, however it did."""

    def __init__(
        self, content: AsyncIterator[bytes], *, headers: dict[str, str], media_type: str,
        ended: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(content, headers=headers, media_type=media_type)
        self._ended = ended

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        """ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


def _event(change: Change) -> bytes:
    facts = {"what": change.what, "kind": change.kind, "id": change.id}
    if change.notified is not None:
        facts |= {key: value for key, value in asdict(change.notified).items() if value is not None}
    return f"id: {change.position}\nevent: change\ndata: {json.dumps(facts)}\n\n".encode()


def _order(position: str) -> tuple[int, ...]:
    return tuple(map(int, position.split("-")))
