"""What the demonstration runs: `outkeep up` as a process, and a handler that verifies what it is sent."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

from redis import Redis

from app.accept import queues
from app.core.errors import Permanent, Rejected
from app.core.names import NOTIFY_QUEUE, PERSIST_QUEUE
from app.core.signature import parse_verifying_keys, verify
from app.settings import VARIABLES
from app.simulator import Simulator
from app.valkey.server import running_url


@contextmanager
def downstream(secret: str, on_event: Callable[[dict[str, Any]], None]) -> Iterator[str]:
    """Run it on a free port and give its URL; `on_event` is called in its threads for each genuine event."""
    keys = parse_verifying_keys(secret)

    class Downstream(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
            try:
                verify(headers, body, keys, now=time.time())
            except Rejected as error:
                self.send_response(error.status)
            else:
                on_event(json.loads(body))
                self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing of each request."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Downstream) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/outputs"
        server.shutdown()


PATIENCE = 60.0
"""Seconds after which a step counts as failed."""

POLL = 0.1
HANDLER = "demo"
LOG = "outkeep.log"


def environment(simulator: Simulator, data: Path, port: int, handler: tuple[str, str]) -> dict[str, str]:
    """The settings of `outkeep up`, and none of the caller's; `handler` is its URL and secret."""
    url, secret = handler
    file = data / "outkeep.toml"
    file.write_text(f'[[handler]]\nname = "{HANDLER}"\nurl = "{url}"\nsecret = "env:DEMO_SECRET"\n')
    return _without_settings(os.environ) | {
        "DEMO_SECRET": secret,
        "HOST": "127.0.0.1",
        "LOG_FORMAT": "json",
        # Else `up` prints a link that signs in, and what it prints is the log here.
        "OUTKEEP_ADMIN_TOKEN": token_urlsafe(32),
        "OUTKEEP_DATA": str(data),
        "OUTKEEP_DISK_FLOOR": "0",
        "OUTKEEP_HANDLERS": str(file),
        "OUTKEEP_NOTIFY_PRIVATE": "true",
        "OUTKEEP_OUTPUT_HOSTS": simulator.url,
        "PORT": str(port),
        "REPLICATE_WEBHOOK_SECRET": simulator.secret,
    }


def _without_settings(inherited: Mapping[str, str]) -> dict[str, str]:
    known = {*VARIABLES, *(f"{name}_FILE" for name in VARIABLES)}
    return {
        name: value
        for name, value in inherited.items()
        if name not in known and not name.startswith("OUTKEEP_")
    }


@contextmanager
def running(settings: Mapping[str, str], data: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `outkeep up`, its log in the data folder; it ends with the block, and with this process."""
    with (data / LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.cli", "up", "--lifeline"],
            env=dict(settings),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us; a second request to stop would mean haste
        )
        try:
            yield process
        finally:
            process.terminate()
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
            redis.close()
        time.sleep(POLL)
    raise failure("Outkeep did not start", data)


def failure(what: str, data: Path) -> Permanent:
    """The error that says what went wrong, why as far as `up` said it, and where its log is."""
    log = data / LOG
    said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("outkeep: ")]
    reason = f": {said[-1].removeprefix('outkeep: ')}" if said else ""
    return Permanent("demo_failed", f"{what}{reason}; its log is {log}")
