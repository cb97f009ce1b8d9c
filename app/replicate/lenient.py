"""The protocol of aiohttp's client, for hosts and handlers whose answers are not quite HTTP."""

import asyncio
from typing import Any

from aiohttp import ClientPayloadError
from aiohttp.client_proto import ResponseHandler

from app.core.heads import END, MAX_HEAD, for_file, for_status, is_answered, is_informational

PATIENCE = 2.0
"""Seconds in which the rest of a head must come whose status is known, where that alone counts."""

_BEGINNING = b"HTTP/"


class LenientHandler(ResponseHandler):
    """Hands the parser a head only when that is whole, written anew by `app.core.heads` where it must be.

    With `statuses` the status of an answer alone counts: whatever else is wrong in it, there is an answer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, statuses: bool) -> None:
        super().__init__(loop)
        self._statuses = statuses
        self._head: bytearray | None = None
        self._is_deaf = False
        self._giving_up: asyncio.TimerHandle | None = None

    def set_response_params(self, **params: Any) -> None:
        """Begin an answer: its head comes first."""
        self._head, self._is_deaf = bytearray(), False
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Collect the head; what follows goes on as it comes."""
        if self._is_deaf and data:
            return
        if self._head is None or self._parser is None or not data:
            super().data_received(data)
            return
        searched = max(len(self._head) - 2, 0)
        self._head += data
        if self._head.startswith((b"\r", b"\n")):
            self._head, searched = self._head.lstrip(b"\r\n"), 0
        if self._head[:5] != _BEGINNING[: len(self._head)]:
            self._pass_on(bytes(self._head))  # for the parser to refuse
        elif END.search(self._head, searched):
            self._take(bytes(self._head))
        elif len(self._head) > MAX_HEAD:
            self._give_up("headers that do not end")
        elif self._statuses and self._giving_up is None and is_answered(self._head):
            self._giving_up = self._loop.call_later(PATIENCE, self._give_up, "headers that do not end")

    def _take(self, data: bytes) -> None:
        """Take the first whole head but those of interim answers, which mean nothing."""
        at = 0
        while found := END.search(data, at):
            head, at = data[at : found.end()], found.end()
            if not is_informational(head):
                self._answer(head, data[at:])
                return
        self._head = bytearray(data[at:])

    def _answer(self, head: bytes, rest: bytes) -> None:
        if not self._statuses:
            self._pass_on(for_file(head) + rest)
            return
        written = for_status(head)
        # Apart, since the parser forgets an answer in whose body it finds a fault at once.
        self._pass_on(written)
        if written != head:
            self._is_deaf = True
        elif rest:
            super().data_received(rest)

    def _give_up(self, fault: str) -> None:
        """Make do with as much of the head as there is."""
        if self._head is not None and self._parser is not None:
            self._pass_on((for_status if self._statuses else for_file)(bytes(self._head), fault))
            self._is_deaf = True

    def _pass_on(self, data: bytes) -> None:
        self._head = None
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell a body that ends with its connection from one that a broken connection has cut."""
        if self._statuses and self._head and is_answered(self._head):
            self._give_up("headers that were cut off")
        fault = exc or self.exception()
        if fault is not None and self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(ClientPayloadError(f"it broke off: {type(fault).__name__}"))
        if self._giving_up is not None:
            self._giving_up.cancel()
        super().connection_lost(exc)
