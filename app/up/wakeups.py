"""Lets the main thread sleep until a signal, the end of a child, or another thread wakes it."""

import select
import signal
import socket
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

ECHO = 1.0
"""Seconds after the first request within which others are its echo: a terminal, a service manager and a
script may all pass on the same wish to stop."""


class Wakeups:
    """While entered (main thread only), notes requests to stop. Signals that were ignored stay ignored."""

    def __init__(self) -> None:
        self.requested = False
        self.hasty = False
        """Whether another request came after `ECHO`."""
        self._first = 0.0
        self._reading, self._writing = socket.socketpair()
        self._reading.settimeout(0)
        self._writing.settimeout(0)

    def __enter__(self) -> Self:
        self._descriptor = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        # A process under nohup was told to outlive its terminal.
        numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._request) for number in numbers}
        # Any handler will do: without one the end of a child does not reach the wake-up descriptor.
        self._handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._descriptor)
        self._reading.close()
        self._writing.close()

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or as soon as something happened."""
        if select.select([self._reading], [], [], max(0.0, seconds))[0]:
            self._reading.recv(4096)

    def wake(self) -> None:
        """End the current or next `wait`; from any thread."""
        # Full means that it wakes anyhow, closed that nobody sleeps any more.
        with suppress(OSError):
            self._writing.send(b"\0")

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._first = True, now
        elif now - self._first >= ECHO:
            self.hasty = True
