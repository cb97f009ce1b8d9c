"""The real receiver on a free port: in a thread of the test, or as the process `outkeep serve`."""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.core.signature import parse_signing_keys, signed_headers
from app.deployment import connect, prepare
from app.main import LIMITS, server
from app.receive.limits import Limits
from app.receive.listening import free_port
from tests import forked

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SECRET_KEY = "0123456789abcdef0123456789abcdef"
WEBHOOK = "/webhooks/replicate"
ENDING = 60.0
"""Seconds that a receiver gets to end, far more than its grace: then something hangs."""
BOUND = 2.0
"""Seconds within which every delivery must be answered, whatever Redis does."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Web:
    """A running receiver."""

    port: int
    folder: Path

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float = 30,
    ) -> Answer:
        """One request; its socket times out after `timeout` seconds of silence."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            lowered = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, lowered, answer.read())
        finally:
            connection.close()

    def deliver(
        self,
        body: bytes,
        path: str = WEBHOOK,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float = 30,
    ) -> Answer:
        """A signed delivery; `headers` replace or add to those of the signature."""
        own = signed(body, webhook_id=f"msg_{'t' if '/trainings' in path else 'p'}GEvjbj5JfrCSTduf2IL4TZgFz")
        return self.ask("POST", path, body, {**own, **(headers or {})}, timeout=timeout)

    def outcome(self, body: bytes, path: str = WEBHOOK) -> str:
        """What a delivery was taken for."""
        answer = self.deliver(body, path)
        assert answer.status == 202, answer
        return str(answer.json()["outcome"])


def signed(
    body: bytes, *, webhook_id: str = "msg_2yGEvjbj5JfrCSTduf2IL4TZgFz", now: float | None = None
) -> dict[str, str]:
    """The headers of a genuine delivery of `body`."""
    return signed_headers(webhook_id, int(now or time.time()), body, parse_signing_keys(SECRET))


def prediction(identity: str = "ype2b3w02xrme0cqadzrms82nm", **changes: Any) -> bytes:
    """A small terminal prediction."""
    return json.dumps(
        {"id": identity, "status": "succeeded", "output": "done", "input": {}, **changes}
    ).encode()


def environment(redis_url: str, folder: Path, **more: str | None) -> dict[str, str]:
    """The settings of a receiver whose data lies in `folder`; None takes one away."""
    given = {
        "REDIS_URL": redis_url,
        "OUTKEEP_DATA": str(folder),
        "OUTKEEP_SECRET_KEY": SECRET_KEY,
        "REPLICATE_WEBHOOK_SECRET": SECRET,
        "LOG_FORMAT": "json",
        **more,
    }
    return {name: value for name, value in given.items() if value is not None}


@contextmanager
def in_thread(redis_url: str, folder: Path, limits: Limits = LIMITS, /, **more: str | None) -> Iterator[Web]:
    """Run the receiver's own server in a thread, until the block ends."""
    deployment = connect(*prepare(environment(redis_url, folder, **more), receives=True))
    web_server = server(deployment, limits)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=web_server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: web_server.started)
            yield Web(listener.getsockname()[1], folder)
        finally:
            web_server.should_exit = True
            thread.join(ENDING)
            assert not thread.is_alive(), f"the receiver has not ended after {ENDING:g} s"


@contextmanager
def in_process(
    redis_url: str, folder: Path, limit: str = "", /, **more: str | None
) -> Iterator[tuple[Web, "subprocess.Popen[bytes]"]]:
    """Run `outkeep serve`, perhaps with a `limit` for `ulimit`; its log is `folder/serve.log`.

    It is killed at the end if it still runs.
    """
    limited = ["/bin/sh", "-c", f'ulimit {limit} && exec "$@"', "sh"] if limit else []
    port = free_port()
    settings = environment(redis_url, folder, PORT=str(port), **more)
    with (folder / "serve.log").open("wb") as log:
        process = forked.Popen(
            [*limited, sys.executable, "-m", "app.cli", "serve"],
            env=clean_environment(settings),
            stdout=log,
            stderr=log,
        )
        try:
            web = Web(port, folder)
            wait_until(lambda: process.poll() is not None or _lives(web))
            assert process.poll() is None, (folder / "serve.log").read_text()
            yield web, process
        finally:
            process.kill()
            process.wait()


def whole_answer(connection: socket.socket) -> bytes:
    """One answer, of a connection that may serve more: its head and its body may come apart."""
    answer, length = b"", re.compile(rb"content-length: (\d+)\r\n(?:.*\r\n)*?\r\n", re.IGNORECASE)
    while (head := length.search(answer)) is None or len(answer) < head.end() + int(head[1]):
        piece = connection.recv(65536)
        if not piece:
            break
        answer += piece
    return answer


def clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process without any setting of ours, and `settings`."""
    ours = ("OUTKEEP_", "REPLICATE_", "REDIS_URL", "HOST", "PORT", "LOG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | dict(settings)


def wait_until(holds: Callable[[], bool], *, timeout: float = 60) -> None:
    """Look again and again until `holds`; fails the test after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    began = time.monotonic()
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(
            max(0.02, min(0.2, time.monotonic() - began))
        )  # who looks leaves half of the time to others
        began = time.monotonic()


def _lives(web: Web) -> bool:
    try:
        return web.ask("GET", "/healthz").status == 200
    except OSError:
        return False
