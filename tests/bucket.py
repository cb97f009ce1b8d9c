"""A real S3 server on a port (moto's, in a process of its own), and a proxy before it that makes trouble."""

import http.client
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from app.receive.listening import free_port
from tests.receive.web import wait_until

NAME = "keep"
PREFIX = "below/here"
KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@dataclass(frozen=True)
class S3:
    """An S3 server at `endpoint`, a URL."""

    endpoint: str

    @property
    def url(self) -> str:
        """What `OUTKEEP_STORAGE` is set to."""
        return f"s3://{NAME}/{PREFIX}"

    def settings(self, **more: str) -> dict[str, str]:
        """The environment of processes that store there."""
        return {"OUTKEEP_STORAGE": self.url, **self.variables(), **more}

    def variables(self) -> dict[str, str]:
        """The usual variables of S3."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, Mapping[str, str], bytes]:
        """One request; the server looks whether it is signed, not how."""
        signed = {"authorization": f"AWS4-HMAC-SHA256 Credential={KEY}/20260316/us-east-1/s3/aws4_request"}
        connection = http.client.HTTPConnection(urlsplit(self.endpoint).netloc, timeout=30)
        connection.request(method, path, body, signed)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        content = answer.read()
        connection.close()
        return answer.status, headers, content

    def clear(self) -> None:
        """Forget everything, and make the bucket anew."""
        self.ask("POST", "/moto-api/reset")
        assert self.ask("PUT", f"/{NAME}")[0] == 200

    def head(self, name: str) -> Mapping[str, str]:
        """The headers under which an object is served."""
        return self.ask("HEAD", f"/{NAME}/{PREFIX}/{name}")[1]


@contextmanager
def s3_server() -> Iterator[S3]:
    """Run moto's server until the end of the block."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        server = S3(f"http://127.0.0.1:{port}")
        try:
            wait_until(lambda: process.poll() is not None or _answers(server), timeout=60)
            server.clear()
            yield server
        finally:
            process.kill()


def _answers(server: S3) -> bool:
    with suppress(OSError, http.client.HTTPException):
        return server.ask("GET", "/")[0] == 200
    return False


@dataclass(frozen=True)
class Asked:
    """A request as the proxy saw it, before it decides; `path` with its query."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Refusal:
    """What the proxy answers in place of the store, which learns nothing of the request."""

    status: int
    code: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        if not self.code:
            return b""
        error = f"<Error><Code>{self.code}</Code><Message>It is {KEY} that fails.</Message></Error>"
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{error}'.encode()


Rule = Callable[[Asked], Refusal | None]
"""Decides about one request; it may take its time."""


def well(_: Asked) -> None:
    """Nothing is refused."""


class FaultyProxy:
    """`rule` decides what becomes of each request; `drops` names request headers that do not get through."""

    def __init__(self, target: S3, endpoint: str) -> None:
        self.s3 = S3(endpoint)
        self.target = target
        self.rule: Rule = well
        self.drops: frozenset[str] = frozenset()
        self.asked: list[Asked] = []

    def refuse(self, status: int, code: str = "") -> None:
        """Refuse all that comes from now on."""
        self.rule = lambda _: Refusal(status, code)

    def mend(self) -> None:
        """Let all pass again."""
        self.rule = well


@contextmanager
def faulty_proxy(target: S3) -> Iterator[FaultyProxy]:
    """Run a proxy before `target` until the end of the block."""
    server = _Server(("127.0.0.1", 0), _Handler)
    proxy = FaultyProxy(target, f"http://127.0.0.1:{server.server_address[1]}")
    server.proxy = proxy  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a connection that finds no place waits for a second


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        with suppress(OSError):
            super().handle_one_request()

    def answer(self) -> None:
        proxy: FaultyProxy = self.server.proxy  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers)
        proxy.asked.append(asked)
        refusal = proxy.rule(asked)
        if refusal is not None:
            self.tell(refusal.status, dict(refusal.headers), refusal.body)
            return
        connection = http.client.HTTPConnection(urlsplit(proxy.target.endpoint).netloc, timeout=60)
        passed = {name: value for name, value in headers.items() if name not in proxy.drops}
        connection.request(self.command, self.path, body, passed)
        answer = connection.getresponse()
        self.tell(answer.status, dict(answer.getheaders()), answer.read())
        connection.close()

    def tell(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers.items()}.get("content-length", len(body))
        self.send_header("content-length", str(length if self.command == "HEAD" else len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def log_message(self, *_: Any) -> None:
        """Nothing."""
