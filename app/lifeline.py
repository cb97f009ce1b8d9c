"""Ends a child when its parent dies, even by kill -9: a pipe whose other end only the parent holds.

The parent gives the child the reading end as standard input and keeps the writing end open. When the parent
is gone, whatever the reason, the kernel closes that end and the child reads the end of the file. This needs
no polling and nothing that only one operating system has.
"""

import os
import signal
import threading
import time
from collections.abc import Callable

from app.processes import signal_session

GRACE = 40.0
"""Seconds between the request to stop and the hard end."""


def watch(on_cut: Callable[[], None] | None = None, *, fd: int = 0, grace: float = GRACE) -> None:
    """Call `on_cut` in a daemon thread once the parent is gone.

    Takes the pipe over: `fd` itself reads from the null device afterwards, so that neither our own children
    nor user code can meet the pipe. Without `on_cut` the process is asked to stop with SIGTERM, and after
    `grace` seconds it ends at once, together with its session if it leads one. Raises OSError when `fd` is
    not open.
    """
    pipe = os.dup(fd)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, fd, inheritable=fd == 0)
    os.close(null)
    action = on_cut or (lambda: end_myself(grace))
    threading.Thread(target=_wait, args=(pipe, action), name="lifeline", daemon=True).start()


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
