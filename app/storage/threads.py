"""Threads for blocking calls of one kind, so that what hangs holds up only its own kind."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

IDLE = 10.0
"""Seconds after which a thread without work ends."""


WAIT = 0.05
"""Seconds that a call waits for one of a few threads before there is another one."""


class Threads:
    """At most `most` threads, made when they are needed. No end of a process waits for one that hangs.

    `few` of them do what is quick: threads that run at once wake each other for Python's lock at every call
    of the system. More are made as long as calls wait, which is so when those that run are slow.

    `asyncio.to_thread` has few threads for everything, and Python waits for them before it ends.
    """

    def __init__(self, name: str, most: int, *, few: int | None = None) -> None:
        self._name = name
        self._most = most
        self._few = few or most
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._calls = 0
        self._timer: asyncio.TimerHandle | None = None

    def run(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Call `work` in a thread. Whoever is cancelled waits no more; the call goes on to its end."""
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
            with self._lock:
                self._calls -= 1
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(_settle, outcome, result, failure)

        with self._lock:
            self._calls += 1
            self._work.put(call)
            is_short = self._threads < min(self._calls, self._few)
            self._threads += is_short
        if is_short:
            self._start()
        elif self._calls > self._threads:
            self._look_again(loop)
        return outcome

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None or self._timer.when() < loop.time():  # it may be one of a loop that has ended
            self._timer = loop.call_later(WAIT, self._add, loop)

    def _add(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make one thread more when calls still wait."""
        self._timer = None
        with self._lock:
            is_short = self._threads < self._most and not self._work.empty()
            self._threads += is_short
        if is_short:
            self._start()
            self._look_again(loop)

    def _start(self) -> None:
        threading.Thread(target=self._serve, name=self._name, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                call = self._work.get(timeout=IDLE)
            except Empty:
                with self._lock:
                    if self._calls < self._threads:  # else a call was just put in for this one
                        self._threads -= 1
                        return
                continue
            call()
            del call  # what it holds need not outlive it


def _settle(outcome: "asyncio.Future[Any]", result: Any, failure: BaseException | None) -> None:
    if outcome.done():
        return
    if failure is None:
        outcome.set_result(result)
    else:
        outcome.set_exception(failure)
