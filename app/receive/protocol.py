"""uvicorn's HTTP protocol with the bounds that it lacks: deadlines for what comes in, and caps.

A connection is always in one phase, and each phase has an end. uvicorn itself waits for ever for a head or a
body, and reads heads of any size.
"""

import json
from asyncio import TimerHandle, Transport
from collections import Counter, OrderedDict
from enum import Enum
from http import HTTPStatus
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.core.addresses import Proxies
from app.core.names import COG_PATH
from app.receive.limits import SHARE, Limits


class Phase(Enum):
    """What we wait for."""

    IDLE = "the first byte of a request"
    HEAD = "the rest of its head"
    BODY = "the rest of its body"
    ANSWER = "our own answer"
    CLOSING = "the last bytes of our answer to leave"


class Enough(Exception):
    """Stops the parser, which else would go on to the end of what came, however much that is."""


class Seats:
    """The open connections, and who has to go when there are too many of all or of one sender."""

    def __init__(self, limits: Limits, proxies: Proxies) -> None:
        self.stranger = proxies.stranger
        self._most = limits.connections
        self._most_of_one = max(1, limits.connections // SHARE)
        self._count = 0
        self._of: Counter[str | None] = Counter()
        # Who waits for longest stands first.
        self._idle: OrderedDict[BoundedProtocol, None] = OrderedDict()
        self._reading: OrderedDict[BoundedProtocol, None] = OrderedDict()

    def take(self, one: "BoundedProtocol") -> "BoundedProtocol | None":
        """Note a new connection; the one that has to go for it, perhaps itself, None while there is room.

        Who has asked for nothing goes first, then whose request is not whole; nobody who waits for us.
        """
        self._count += 1
        self._of[one.stranger] += 1
        of_one = one.stranger is not None and self._of[one.stranger] > self._most_of_one
        if not of_one and self._count <= self._most:
            return None
        waiting = (other for seats in (self._idle, self._reading) for other in seats)
        return next((other for other in waiting if not of_one or other.stranger == one.stranger), one)

    def note(self, one: "BoundedProtocol", phase: Phase) -> None:
        """Note what a connection waits for now; from its first byte on a head is no news."""
        idle, reading = self._idle, self._reading
        (idle.setdefault if phase in (Phase.IDLE, Phase.HEAD) else idle.pop)(one, None)
        (reading.setdefault if phase is Phase.BODY else reading.pop)(one, None)

    def leave(self, one: "BoundedProtocol") -> None:
        """Note the end of a connection."""
        self.note(one, Phase.CLOSING)
        self._count -= 1
        self._of[one.stranger] -= 1
        if not self._of[one.stranger]:
            del self._of[one.stranger]


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Methods are callbacks of asyncio, of the parser, and of uvicorn's server."""

    stranger: str | None = None
    """Who has to bear it; None for a trusted proxy."""

    def __init__(self, *args: Any, limits: Limits, seats: Seats, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._seats = seats
        self._phase = Phase.IDLE
        self._deadline = 0.0
        self._body_ends = 0.0
        self._timer: TimerHandle | None = None
        self._loose_bytes = 0
        self._parsed_bytes = 0
        self._body_bytes = 0
        self._pieces = 0
        self._deaf = False
        self._running: RequestResponseCycle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; where there are too many connections, one has to go."""
        super().connection_made(transport)
        self.stranger = self._seats.stranger(self.client[0] if self.client else None)
        leaver = self._seats.take(self)
        self._enter(Phase.IDLE, self._limits.head_seconds)
        if leaver is not None:
            leaver.give_way(silently=leaver is not self and leaver._phase is Phase.IDLE)  # noqa: SLF001

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline, and let no request answer that came before the last one."""
        self._seats.leave(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
        # uvicorn forgets its timer only where there was no error, and it holds the whole connection.
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; a head must not go on for ever, neither in time nor in bytes.

        Nor must what stands between the pieces of a body and behind the last one.
        """
        if self._deaf or self.transport.is_closing():
            return
        if self._phase is Phase.IDLE:
            self._loose_bytes = 0
            self._enter(Phase.HEAD, self._limits.head_seconds)
        self._loose_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except HttpParserError:
            if not self._is_over:
                self._refuse_bad()
        if self._phase in {Phase.HEAD, Phase.BODY} and self._loose_bytes > self._limits.head_bytes:
            self._refuse_head()
        elif self._phase is Phase.BODY:
            pause = self.loop.time() + self._limits.stall_seconds
            self._set_deadline(min(pause, self._body_ends))

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer also a client that has only ended its own side, once it has sent a whole request."""
        if self._phase is not Phase.ANSWER:
            return False
        self.cycle.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        """A head begins, perhaps behind a request that is not answered yet."""
        self._require_more()
        super().on_message_begin()
        self._parsed_bytes = self._body_bytes = self._pieces = 0
        self._enter(Phase.HEAD, self._limits.head_seconds)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header; those beyond the limit are not read, nor is what comes behind a body one."""
        self._require_more()
        if self._phase is Phase.HEAD:
            super().on_header(name, value)
            self._parsed_bytes += len(name) + len(value) + 4
        else:
            self._pieces += 1
        if len(self.headers) > self._limits.headers or self._is_in_crumbs:
            self._refuse_head()

    def on_headers_complete(self) -> None:
        """Start the request unless its head is too large or not clear, or too many wait already."""
        self._require_more()
        self._loose_bytes = 0
        size = self._parsed_bytes + len(self.url)
        too_large = size > self._limits.head_bytes or len(self.headers) > self._limits.headers
        if too_large or len(self.pipeline) >= self._limits.pipelined:
            self._refuse_head()
            return
        version = self.parser.get_http_version()
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        # Proxies differ in what they make of other codings, and of a fragment, which is not for servers.
        is_clear = version in {"1.0", "1.1"} and codings in ([], [b"chunked"]) and b"#" not in self.url
        if not is_clear or (codings and version == "1.0") or self.parser.get_method() == b"CONNECT":
            self._refuse_bad()
            return
        if self.parser.should_upgrade():
            return  # `_feed` begins again
        if version == "1.0":
            self.expect_100_continue = False  # it would be taken for the answer
        super().on_headers_complete()
        # As it was sent: whoever filters paths before us has not decoded it either, or in another way.
        self.scope["path"] = self.scope["raw_path"].decode()
        self._body_ends = self.loop.time() + self._limits.body_seconds
        self._enter(Phase.BODY, min(self._limits.stall_seconds, self._limits.body_seconds))

    def on_body(self, body: bytes) -> None:
        """Pass on a piece of a body, which has few that are tiny: each takes as long as a large one."""
        self._require_more()
        self._loose_bytes = 0
        self._body_bytes += len(body)
        self._pieces += 1
        if self._is_in_crumbs:
            self._refuse_bad()
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole; from here the time is ours."""
        if self._is_over or self.parser.should_upgrade():
            return
        super().on_message_complete()
        # What follows the last request of a connection is none.
        self._deaf = not self.cycle.keep_alive
        self._enter(Phase.ANSWER, None)
        self._rest()

    def on_response_complete(self) -> None:
        """The answer is on its way; what follows is the next request or the end."""
        super().on_response_complete()
        self._rest()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        if self._phase is Phase.ANSWER:
            self._enter(Phase.ANSWER, self._limits.unread_seconds)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if self._phase is Phase.ANSWER:
            self._enter(Phase.ANSWER, None)

    def shutdown(self) -> None:
        """Let the request in flight end in time: what is still open at the end of the grace is cut off."""
        super().shutdown()
        half = self.loop.time() + self._limits.grace_seconds / 2
        self._body_ends = min(self._body_ends, half)
        if self._phase is Phase.BODY:
            self._set_deadline(min(self._deadline, half))
        self.loop.call_later(self._limits.grace_seconds * 0.9, self.transport.abort)

    def give_way(self, *, silently: bool) -> None:
        """Close, because there are too many connections."""
        if silently:
            self._close()
        else:
            self._refuse(503, "too_many_connections", "too many connections; try again", "retry-after: 2\r\n")

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _feed(self, data: bytes) -> None:
        """Parse what came, and no `Upgrade`: each request is answered as if it had not asked for one.

        At the end of a head that asks, the parser stops: to it what follows is another protocol, and no body.
        So a new one reads the same head without that header, and then what follows. Raises `HttpParserError`.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as stop:
                if self._is_over:
                    return
                start = b"%b %b HTTP/%b" % (
                    self.parser.get_method(),
                    self.url,
                    self.parser.get_http_version().encode(),
                )
                lines = [b"%b: %b" % (name, value) for name, value in self.headers if name != b"upgrade"]
                data = b"\r\n".join([start, *lines, b"", data[stop.args[0] :]])
                self.parser = HttpRequestParser(self)
            else:
                return

    def _require_more(self) -> None:
        """Raise `Enough` once no further request is taken."""
        if self._is_over:
            raise Enough

    @property
    def _is_in_crumbs(self) -> bool:
        """Whether a body, or what follows it, comes in too many tiny pieces."""
        return self._pieces > self._limits.pieces + self._body_bytes // self._limits.small_piece

    @property
    def _is_over(self) -> bool:
        """Whether no further request is taken."""
        return self._deaf or self._phase is Phase.CLOSING

    def _rest(self) -> None:
        """Wait for the next request once this one is both whole and answered."""
        if self.transport.is_closing():
            self._enter(Phase.CLOSING, self._limits.linger_seconds)
        elif self._phase is Phase.ANSWER and self.cycle.response_complete:
            self._enter(Phase.IDLE, self._limits.keep_alive(len(self.connections)))

    def _refuse_head(self) -> None:
        self._refuse(431, "headers_too_large", "the headers of this request are too large or too many")

    def _refuse_bad(self) -> None:
        self._refuse(400, "bad_request", "this is not HTTP as it should be")

    def _refuse_slow(self) -> None:
        message = "the request did not arrive in time"
        if self._phase is Phase.BODY and self.url.startswith(COG_PATH.encode()):
            # Perhaps it is us who end. Told 408, Cog would not send it again.
            self._refuse(503, "too_slow", message, "retry-after: 2\r\n")
        else:
            self._refuse(408, "too_slow", message)

    def _refuse(self, status: int, code: str, message: str, more: str = "") -> None:
        """Answer in the place of the application where that is possible, and close."""
        cycle = self.cycle
        is_open = cycle is not None and not cycle.response_complete
        if is_open and self._phase is not Phase.BODY:
            # An earlier request is being answered, and our words would be taken for that answer.
            cycle.keep_alive = False
            self._deaf = True
            self._enter(Phase.ANSWER, None)
            return
        if is_open:
            cycle.disconnected = True
            cycle.message_event.set()
        may_speak = self._phase is not Phase.BODY or (is_open and not cycle.response_started)
        if may_speak and not self.pipeline:
            self.transport.write(self._answer(status, code, message, more))
        self._close()

    def _close(self) -> None:
        self.transport.close()
        self._enter(Phase.CLOSING, self._limits.linger_seconds)

    def _enter(self, phase: Phase, seconds: float | None) -> None:
        self._phase = phase
        self._seats.note(self, phase)
        self._set_deadline(None if seconds is None else self.loop.time() + seconds)

    def _set_deadline(self, deadline: float | None) -> None:
        # A timer that fires too early only looks again: that is cheaper than a new one for each piece.
        self._deadline = float("inf") if deadline is None else deadline
        if deadline is None or (self._timer is not None and self._timer.when() <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(deadline, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.loop.time() < self._deadline:
            if self._deadline < float("inf"):
                self._set_deadline(self._deadline)
        elif self._phase is Phase.IDLE:
            self._close()
        elif self._phase in {Phase.HEAD, Phase.BODY}:
            self._refuse_slow()
        else:
            self.transport.abort()

    def _answer(self, status: int, code: str, message: str, more: str) -> bytes:
        body = json.dumps({"error": code, "message": message}).encode()
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        lines += [name + b": " + value for name, value in self.server_state.default_headers]
        lines += [b"content-type: application/json", b"content-length: %d" % len(body), b"connection: close"]
        return b"\r\n".join(lines) + f"\r\n{more}\r\n".encode() + body
