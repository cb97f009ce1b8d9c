"""The event loop of a worker: a thread of its own, a context around all jobs, a watchdog over lateness."""

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

log = logging.getLogger("outkeep.worker")

T = TypeVar("T")
Ended = Callable[["asyncio.Task[Any]"], None]

LATE = 1.0
"""Seconds after which a loop that does not answer is reported."""

THREADS = 32

_CANCELLATION = 2.0
"""Seconds that jobs cut off at the end get to clean up after themselves."""


class JobLoop(Generic[T]):
    """Runs coroutines in one thread, inside one asynchronous context.

    `context` is entered before the first job and left after the last; its value is what `start` returns.
    """

    def __init__(self, context: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self.failure: BaseException | None = None
        self._context = context
        self._entered: Future[T] = Future()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = threading.Event()

    @property
    def alive(self) -> bool:
        """False once the loop has ended, wanted or not."""
        return self._thread.is_alive()

    def start(self) -> T:
        """Enter the context and return its value; raises what entering raised."""
        self._thread.start()
        value = self._entered.result()
        self._watchdog.start()
        return value

    def launch(self, begin: Callable[[], Coroutine[Any, Any, Any]], started: Ended, ended: Ended) -> None:
        """Start a task from another thread. `started` and `ended` are called on the loop with the task.

        A task that `close` cuts off never reaches `ended`. Raises RuntimeError when the loop is closed.
        """
        self._loop.call_soon_threadsafe(self._begin, begin, started, ended)

    def cancel(self, task: "asyncio.Task[Any]") -> None:
        """Cancel one task from another thread."""
        self._loop.call_soon_threadsafe(task.cancel)

    def close(self, timeout: float) -> bool:
        """Cancel what still runs, leave the context, end the thread; False if that takes over `timeout` s.

        What leaving the context raised is in `failure`.
        """
        self._closed.set()
        if self.alive:
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(timeout)
        return not self.alive

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001  # handed to the main thread, which raises it
            self.failure = error
            if not self._entered.done():
                self._entered.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        # What waits in these threads waits for Redis; names, disks and storage have threads of their own.
        self._loop.set_default_executor(ThreadPoolExecutor(THREADS, "blocking"))
        self._closing = asyncio.Event()
        async with self._context() as value:
            self._entered.set_result(value)
            await self._closing.wait()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_CANCELLATION)

    def _begin(self, begin: Callable[[], Coroutine[Any, Any, Any]], started: Ended, ended: Ended) -> None:
        if self._closing.is_set():
            return
        task = self._loop.create_task(begin())
        self._tasks.add(task)
        started(task)
        task.add_done_callback(lambda done: self._end(done, ended))

    def _end(self, task: "asyncio.Task[Any]", ended: Ended) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # asyncio complains about an exception that nobody looks at
        if not self._closing.is_set():
            ended(task)

    def _watch(self) -> None:
        while not self._closed.wait(LATE) and self.alive:
            answer = threading.Event()
            asked = time.monotonic()
            self._loop.call_soon_threadsafe(answer.set)
            if answer.wait(LATE):
                continue
            log.warning("a job blocks the loop, so that all other jobs wait; it is here:\n%s", self._stack())
            while self.alive and not self._closed.is_set():
                if answer.wait(LATE):
                    log.warning("the loop was blocked for %.1f s", time.monotonic() - asked)
                    break

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001  # documented, if oddly named
        return "".join(traceback.format_stack(frame, limit=None)[-5:]) if frame else "(ended)"
