"""Threads for blocking calls of one kind, so that what hangs holds up only its own kind."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")

IDLE = 10.0
"""Seconds after which a thread without work ends."""


class Threads:
    """At most `most` threads, made when they are needed. No end of a process waits for one that hangs.

    `asyncio.to_thread` has few threads for everything, and Python waits for them before it ends.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._work: deque[Callable[[], None]] = deque()
        self._ready = threading.Condition()
        self._count = self._idle = 0

    async def run(self, work: Callable[[], T]) -> T:
        """Call `work` in a thread. Who is cancelled waits no more; the call goes on to its end by itself."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()
        context = copy_context()

        def call() -> None:
            result: Any = None
            failure: BaseException | None = None
            try:
                result = context.run(work)
            except BaseException as error:  # noqa: BLE001  # raised where it is awaited
                failure = error
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(_settle, outcome, result, failure)

        with self._ready:
            self._work.append(call)
            if self._idle >= len(self._work):
                self._ready.notify()
            elif self._count < self._most:
                self._count += 1
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        return await outcome

    def _serve(self) -> None:
        while True:
            with self._ready:
                self._idle += 1
                found = self._ready.wait_for(lambda: self._work, IDLE)
                self._idle -= 1
                if not found:
                    self._count -= 1
                    return
                call = self._work.popleft()
            call()
            del call  # what it holds need not outlive it


def _settle(outcome: "asyncio.Future[Any]", result: Any, failure: BaseException | None) -> None:
    if outcome.done():
        return
    if failure is None:
        outcome.set_result(result)
    else:
        outcome.set_exception(failure)
