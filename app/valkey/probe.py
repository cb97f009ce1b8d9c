"""Asks and ends a Valkey from outside, whoever started it."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.retry import Retry

from app.core.errors import Permanent
from app.valkey import running as traces

PATIENCE = 30.0
"""Seconds a server gets to end by itself."""

TICK = 0.05


def socket_url(socket: Path) -> str:
    """The URL of a socket; odd characters are quoted, as redis-py expects."""
    return f"unix://{quote(str(socket))}"


def answer(url: str) -> str | None:
    """`ready` or `loading`; None when nobody answers within a second."""
    client = _client(url)
    try:
        client.ping()
    except BusyLoadingError:
        return "loading"
    except ResponseError:
        return "ready"
    except RedisError:
        return None
    else:
        return "ready"
    finally:
        client.close()


def pid_behind(url: str) -> int:
    """The pid that the server on `url` gives itself; 0 when nobody answers."""
    client = _client(url)
    try:
        return int(client.info("server")["process_id"])
    except (RedisError, KeyError, ValueError):
        return 0
    finally:
        client.close()


def end_orphan(data: Path, socket: Path) -> None:
    """End what an earlier process left running on `data`, and remove its traces.

    Only a process that is proven to be the Valkey of this folder is touched. Raises Permanent `valkey_stuck`
    when it cannot be ended, `socket_taken` when a stranger answers on `socket`.
    """
    trace = traces.read(data)
    sockets = {socket, Path(trace.socket)} if trace else {socket}
    pids = {pid_behind(socket_url(path)) for path in sockets} | ({trace.pid} if trace else set())
    for pid in pids:
        if traces.lives(data, pid):
            _end(data, pid)
            # The folder may have been renamed since, and the socket be named after the old one.
            if trace and pid == trace.pid:
                traces.forget(data, Path(trace.socket))
    if answer(socket_url(socket)) is not None:
        raise Permanent(
            "socket_taken",
            f"another server answers on {socket}: stop it, or set XDG_RUNTIME_DIR to another folder",
        )
    traces.forget(data, socket)


def wait_until(holds: Callable[[], bool], timeout: float) -> bool:
    """Whether `holds` came true within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(TICK)
    return True


def _end(data: Path, pid: int) -> None:
    """SIGTERM is Valkey's own graceful shutdown; force comes only after it was refused."""
    for number, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            # A stopped process takes the request only when it goes on.
            os.kill(pid, signal.SIGCONT)
        if wait_until(lambda: not traces.lives(data, pid), patience):
            return
    raise Permanent("valkey_stuck", f"an old Valkey (pid {pid}) still runs on {data} and cannot be ended")


def _client(url: str) -> Redis:
    return Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0))
