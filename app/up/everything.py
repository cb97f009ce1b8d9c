"""`outkeep up`: everything in one terminal, once for each data folder."""

import fcntl
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from secrets import token_urlsafe

from app.core.addresses import is_loopback
from app.core.errors import Permanent
from app.core.handlers import Handler, job_queues
from app.core.names import HANDLE_QUEUE, NOTIFY_QUEUE, PERSIST_QUEUE
from app.deployment import own_keys, prepare
from app.receive.listening import IN_USE, free_port, listen
from app.settings import Settings
from app.telemetry import logs as telemetry
from app.telemetry.redaction import secrets_of
from app.up import lifeline
from app.up.supervisor import Change, Child, Supervisor
from app.valkey.server import Embedded
from app.web.signing import sign_in_url

LOCK = "up.lock"


@contextmanager
def claim(data: Path) -> Iterator[None]:
    """Hold `<data>/up.lock` for the length of the block; the file holds the pid of the holder.

    Raises Permanent `already_running` when another process holds it, `data_unusable` when the folder cannot
    be written to. Programs that we start do not inherit the lock.
    """
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(data / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(data, error) from error
    try:
        _take(lock, data)
        yield
    finally:
        # The file stays: removing it would let two processes lock two files of one name.
        os.close(lock)


def _take(lock: int, data: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace") or "unknown"
        message = (
            f"outkeep up already runs on {data} (pid {holder}): stop it first, or use another OUTKEEP_DATA"
        )
        raise Permanent("already_running", message) from error
    except OSError as error:
        raise _unusable(data, error) from error


def _unusable(data: Path, error: OSError) -> Permanent:
    reason = error.strerror or str(error)
    return Permanent(
        "data_unusable", f"cannot lock {data / LOCK}: {reason}; make OUTKEEP_DATA a writable folder"
    )


ORPHANS_LEAVE = 5.0
"""Seconds that the receiver of a killed `up` may still hold the port."""

_LOUD = frozenset({Change.EXITED, Change.REFUSED, Change.KILLED})

log = logging.getLogger("outkeep.up")


def run(environment: Mapping[str, str], *, has_parent: bool = False) -> int:
    """Run until SIGTERM or Ctrl-C; the exit code, as `Supervisor.run` gives it.

    With `has_parent` it ends with whoever holds the other end of its standard input (see `app.up.lifeline`).

    Raises `ConfigurationError` for a configuration that is refused, `Permanent` when something else already
    runs on the data or the port. Nothing was started then.
    """
    settings, handlers = prepare(environment, receives=True, is_small=True)
    if has_parent:
        lifeline.watch()  # from here on there is a thread, and nothing may fork
    secrets = secrets_of(settings, handlers)
    telemetry.configure(settings.log_level, settings.log_format, role="up", secrets=secrets)
    with claim(settings.data):
        port = settings.port or free_port(settings.host)
        _await_port(settings.host, port)
        log.info("starting", extra=_facts(settings, handlers))
        foundation = [] if settings.redis_url else [Embedded(settings.data)]
        if settings.port == 0:
            # All of them must mean the same port, also in the links that handlers get.
            environment = {**environment, "PORT": str(port), "PORT_FILE": ""}
        environment = {**environment, **_own_token(settings, port)}
        return Supervisor(_children(environment, handlers), foundation=foundation, on_change=_report).run()


def _own_token(settings: Settings, port: int) -> dict[str, str]:
    """Say where the dashboard is; without a token of the user's, the setting of one for the life of `up`.

    Only on a loopback address: there whoever can use the link that is printed is on this host already.
    """
    url = replace(settings, port=port).own_url
    if settings.admin_token is not None:
        _say(f"The dashboard: {settings.public_url or url}/")
        return {}
    if not is_loopback(settings.host):
        return {}
    link = sign_in_url(url, settings.secret_keys or own_keys(settings.data), now=time.time())
    _say(f"The dashboard, by a link that is good once (`outkeep open` makes another):\n    {link}")
    return {"OUTKEEP_ADMIN_TOKEN": token_urlsafe(32), "OUTKEEP_ADMIN_TOKEN_FILE": ""}


def _say(text: str) -> None:
    # To people, and not into the log, where a link that signs somebody in has no business.
    with suppress(OSError):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def _children(environment: Mapping[str, str], handlers: Sequence[Handler]) -> list[Child]:
    commands = {
        "receiver": ("app.cli", "serve"),
        "worker": ("workers", PERSIST_QUEUE, NOTIFY_QUEUE),
    }
    if HANDLE_QUEUE in job_queues(handlers):
        commands[HANDLE_QUEUE] = ("workers", HANDLE_QUEUE)
    # -P: the folder we are started in may hold an `app` or a `redis.py` of its own.
    return [
        Child(name, (sys.executable, "-P", "-m", *command, "--lifeline"), dict(environment))
        for name, command in commands.items()
    ]


def _await_port(host: str, port: int) -> None:
    """Wait until nobody listens on it any more; raises `Permanent`."""
    until = time.monotonic() + ORPHANS_LEAVE
    while True:
        try:
            listen(host, port).close()
        except Permanent as error:
            if error.code != IN_USE or time.monotonic() >= until:
                raise
            time.sleep(0.1)
        else:
            return


def _report(name: str, change: Change, detail: str) -> None:
    level = logging.WARNING if change in _LOUD else logging.INFO
    if change is Change.READY:
        # Nothing was asked of the children: each says itself what it does once it works.
        level = logging.DEBUG
    log.log(level, "%s %s%s", name, change, f": {detail}" if detail else "")


def _facts(settings: Settings, handlers: Sequence[Handler]) -> dict[str, str]:
    return {
        "data": str(settings.data.absolute()),
        "storage": settings.storage_url,
        "handlers": ", ".join(handler.name for handler in handlers) or "none",
    }
