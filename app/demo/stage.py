"""Sets the demonstration up: `outkeep up` as a process of its own, on free ports and a folder of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from redis import Redis

from app import queues
from app.core.errors import Permanent
from app.core.names import NOTIFY_QUEUE, PERSIST_QUEUE
from app.embedded import running_url
from app.simulator import Simulator

PATIENCE = 90.0
"""Seconds after which a step counts as failed."""

HANDLER = "demo"
LOG = "outkeep.log"
_NOT_INHERITED = ("OUTKEEP_", "REPLICATE_", "REDIS_URL")


def environment(simulator: Simulator, data: Path, port: int, handler: tuple[str, str]) -> dict[str, str]:
    """The settings of `outkeep up`, which are all that it needs; `handler` is its URL and secret."""
    url, secret = handler
    file = data / "outkeep.toml"
    file.write_text(f'[[handler]]\nname = "{HANDLER}"\nurl = "{url}"\nsecret = "env:DEMO_SECRET"\n')
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    return inherited | {
        "DEMO_SECRET": secret,
        "HOST": "127.0.0.1",
        "LOG_FORMAT": "json",
        "OUTKEEP_DATA": str(data),
        "OUTKEEP_DISK_FLOOR": "0",
        "OUTKEEP_HANDLERS": str(file),
        "OUTKEEP_NOTIFY_PRIVATE": "true",
        "OUTKEEP_OUTPUT_HOSTS": simulator.url,
        "PORT": str(port),
        "REPLICATE_WEBHOOK_SECRET": simulator.secret,
    }


@contextmanager
def running(settings: Mapping[str, str], data: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `outkeep up`, its log in the data folder; it is stopped with all it started at the end."""
    with (data / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "up"], env=dict(settings), stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def await_workers(process: "subprocess.Popen[bytes]", data: Path) -> Redis:
    """Wait until both workers are registered; raises `Permanent` when that takes too long."""
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        url = running_url(data)
        if url is not None:
            redis = Redis.from_url(url)
            if all(queues.worker_count(name, redis) for name in (PERSIST_QUEUE, NOTIFY_QUEUE)):
                return redis
        time.sleep(0.1)
    raise Permanent("demo_failed", f"Outkeep did not start; its log is {data / LOG}")


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port: int = probe.getsockname()[1]
    return port
