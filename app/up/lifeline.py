"""End a child when its parent dies, even by kill -9, by a pipe whose other end only the parent holds.

The parent gives the child the reading end as standard input and keeps the writing end open. When the parent
is gone, whatever the reason, the kernel closes that end and the child reads the end of the file. This needs
no polling and nothing that only one operating system has.
"""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable

from app.valkey.processes import signal_session

GRACE = 40.0
"""Seconds between the request to stop and the hard end."""


def watch(on_cut: Callable[[], None] | None = None, *, fd: int = 0, grace: float = GRACE) -> None:
    """Call `on_cut` in a daemon thread once the parent is gone.

    Takes the pipe over: `fd` itself reads from the null device afterwards, so that neither our own children
    nor user code can meet the pipe. Without `on_cut` the process is asked to stop with SIGTERM, and after
    `grace` seconds it ends at once, together with its session if it leads one. Raises OSError when `fd` is
    not open.
    """
    pipe = _taken(fd)
    action = on_cut or (lambda: end_myself(grace))
    threading.Thread(target=_wait, args=(pipe, action), name="lifeline", daemon=True).start()


def watch_without_thread(*, fd: int = 0, grace: float = GRACE) -> None:
    """As `watch` without `on_cut`, in a process that forks: no thread runs before the parent is gone.

    Main thread only; takes the signal SIGIO.
    """
    pipe = _taken(fd)
    os.set_blocking(pipe, False)

    def look(*_: object) -> None:
        try:
            while os.read(pipe, 64):
                pass
        except BlockingIOError:
            return
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        threading.Thread(target=end_myself, args=(grace,), name="lifeline", daemon=True).start()

    signal.signal(signal.SIGIO, look)
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    look()  # it may have died before


def _taken(fd: int) -> int:
    pipe = os.dup(fd)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, fd, inheritable=fd == 0)
    os.close(null)
    return pipe


def end_myself(grace: float) -> None:
    """Ask this process to stop; `grace` seconds later end it and what is left of its session."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    if os.getsid(0) == os.getpid():
        signal_session(os.getpid(), signal.SIGKILL, spare=os.getpid())
    os._exit(1)


def _wait(pipe: int, action: Callable[[], None]) -> None:
    # Bytes mean nothing: only the end of the file speaks.
    while os.read(pipe, 64):
        pass
    action()
