"""`outkeep up`: the whole of Outkeep in one terminal."""

import logging
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import closing

from app import telemetry
from app.claim import claim
from app.core.errors import Permanent
from app.core.names import NOTIFY_QUEUE, PERSIST_QUEUE
from app.deployment import prepare
from app.embedded import Embedded
from app.service import Child
from app.settings import Settings
from app.supervisor import Change, Supervisor

ORPHANS_LEAVE = 5.0
"""Seconds that the receiver of a killed `up` may still hold the port."""

_LOUD = frozenset({Change.EXITED, Change.REFUSED, Change.KILLED})

log = logging.getLogger("outkeep.up")


def run(environment: Mapping[str, str]) -> int:
    """Run until SIGTERM or Ctrl-C; the exit code.

    Raises `ConfigurationError` for a configuration that is refused, `Permanent` when something else already
    runs on the data or the port.
    """
    settings, _ = prepare(environment, receives=True)
    telemetry.configure(settings.log_level, settings.log_format)
    with claim(settings.data):
        _await_port(settings.host, settings.port)
        foundation = [] if settings.redis_url else [Embedded(settings.data)]
        supervisor = Supervisor(_children(environment), foundation=foundation, on_change=_report)
        log.info(
            "receiving on http://%s:%d/webhooks/replicate",
            settings.host,
            settings.port,
            extra=_facts(settings),
        )
        return supervisor.run()


def _children(environment: Mapping[str, str]) -> list[Child]:
    commands = {
        "receiver": ("app.cli", "serve"),
        PERSIST_QUEUE: ("workers", PERSIST_QUEUE),
        NOTIFY_QUEUE: ("workers", NOTIFY_QUEUE),
    }
    return [
        Child(name, (sys.executable, "-m", *command, "--lifeline"), dict(environment))
        for name, command in commands.items()
    ]


def _await_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    until = time.monotonic() + ORPHANS_LEAVE
    while True:
        try:
            with closing(socket.create_server((host, port), family=family)):
                return
        except OSError as error:
            if time.monotonic() >= until:
                message = f"cannot listen on {host}:{port}: {error.strerror}; stop what uses it, or set PORT"
                raise Permanent("port_in_use", message) from None
            time.sleep(0.1)


def _report(name: str, change: Change, detail: str) -> None:
    level = logging.WARNING if change in _LOUD else logging.INFO
    log.log(level, "%s %s%s", name, change, f": {detail}" if detail else "")


def _facts(settings: Settings) -> dict[str, str]:
    return {"data": str(settings.data), "storage": settings.storage_url}
