"""The event loop of a process: all its workers on it, signals that stop them, a watchdog over lateness."""

import asyncio
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from app.up.wakeups import ECHO

LATE = 1.0
"""Seconds after which a loop that does not answer is reported."""

THREADS = 32

LEAVING = 4.0
"""Seconds that threads of jobs that were cut off get to end."""

log = logging.getLogger("outkeep.worker")


class Serving(Protocol):
    """A worker, as it stands on the loop."""

    async def serve(self, *, burst: bool) -> bool:
        """Work until told to stop, or with `burst` until there is no job; True if there was one."""

    def stop(self) -> None:
        """Tell it to stop."""


def run(workers: Sequence[Serving], *, burst: bool = False) -> bool:
    """Let workers serve on one loop until SIGTERM or SIGINT (main thread only); True if one had a job.

    When one fails, the others are stopped, and what it raised is raised. A second signal ends the process at
    once with status 1.
    """
    loop = asyncio.new_event_loop()
    # What waits in these threads waits for Redis; names, disks and storage have threads of their own.
    threads = ThreadPoolExecutor(THREADS, "blocking")
    loop.set_default_executor(threads)
    try:
        asyncio.set_event_loop(loop)
        with _stopped_by_signals(loop, workers), _watched(loop):
            return loop.run_until_complete(_serve(workers, burst=burst))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        ending = threading.Thread(target=threads.shutdown, daemon=True)
        ending.start()
        ending.join(LEAVING)
        asyncio.set_event_loop(None)
        loop.close()
        if ending.is_alive():
            log.warning("a thread of a job that was cut off does not end: leaving it behind")
            logging.shutdown()
            os._exit(0)  # Python would wait for that thread for ever


async def _serve(workers: Sequence[Serving], *, burst: bool) -> bool:
    tasks = [asyncio.create_task(worker.serve(burst=burst)) for worker in workers]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    if any(task.exception() for task in done):
        for worker in workers:
            worker.stop()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        if isinstance(error, BaseException):
            raise error
    return any(ended)


@contextmanager
def _stopped_by_signals(loop: asyncio.AbstractEventLoop, workers: Sequence[Serving]) -> Iterator[None]:
    since: list[float] = []

    def stop(_number: int, _frame: FrameType | None) -> None:
        if not since:
            since.append(time.monotonic())
            for worker in workers:
                loop.call_soon_threadsafe(worker.stop)
        elif time.monotonic() - since[0] >= ECHO:
            os._exit(1)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _watched(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Report a loop that does not answer, with what it is at."""
    ended, thread = threading.Event(), threading.get_ident()

    def watch() -> None:
        while not ended.wait(LATE):
            answer = threading.Event()
            asked = time.monotonic()
            loop.call_soon_threadsafe(answer.set)
            if answer.wait(LATE) or ended.is_set():
                continue
            log.warning("a job blocks the loop, so that all other jobs wait; it is here:\n%s", _stack(thread))
            while not ended.is_set():
                if answer.wait(LATE):
                    log.warning("the loop was blocked for %.1f s", time.monotonic() - asked)
                    break

    watching = threading.Thread(target=watch, name="watchdog", daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def _stack(thread: int) -> str:
    frame = sys._current_frames().get(thread)  # noqa: SLF001  # documented, if oddly named
    return "".join(traceback.format_stack(frame, limit=None)[-5:]) if frame else "(ended)"
