"""What was asked of the API, and how it answers when too much is."""

import re
import threading
from collections import Counter

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class Traffic:
    """Counts requests of the API; any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._refusals: list[tuple[int, int | None]] = []

    def count(self, path: str) -> int:
        """How many requests there were whose path matches the expression `path` as a whole."""
        with self._lock:
            return sum(count for each, count in self._counts.items() if re.fullmatch(path, each))

    def refuse(self, times: int, status: int, retry_after: int | None) -> None:
        """Answer the next `times` requests so."""
        with self._lock:
            self._refusals += [(status, retry_after)] * times

    def take(self, path: str) -> tuple[int, int | None] | None:
        """Note a request; the status and the wait to refuse it with, or None."""
        with self._lock:
            self._counts[path] += 1
            return self._refusals.pop(0) if self._refusals else None


class Counted:
    """Lets requests through, except those that are to be refused."""

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self._app = app
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it as Replicate does: the wait stands in the body."""
        refusal = self._traffic.take(Request(scope).url.path)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, wait = refusal
        body = {"detail": f"Refused with {status}.", "status": status}
        answer = JSONResponse(body if wait is None else {**body, "retry_after": wait}, status)
        await answer(scope, receive, send)
