"""A real HTTP server before the simulator's API that loses, delays, refuses or trims answers when told to."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from app.simulator import Simulator
from tests.serving import Answering, serving

Mishap = Callable[["Exchange"], None]
"""What happens to one creation."""


@dataclass
class Exchange:
    """One request on its way: `forward` lets the simulator answer, `answer` and `drop` end it."""

    handler: Any
    body: bytes
    host: "ApiHost"

    def forward(self) -> httpx.Response:
        """What the simulator answers; it has done then what was asked of it."""
        skipped = {"host", "content-length", "connection", "accept-encoding"}
        headers = {name: value for name, value in self.handler.headers.items() if name.lower() not in skipped}
        url = f"{self.host.simulator.url}{self.handler.path}"
        with httpx.Client(trust_env=False, verify=False, timeout=60) as client:
            return client.request(self.handler.command, url, content=self.body, headers=headers)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        """Answer with these bytes."""
        self.handler.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.send_header("content-length", str(len(body)))
        self.handler.end_headers()
        self.handler.wfile.write(body)

    def drop(self) -> None:
        """Close the connection without an answer."""
        self.handler.close_connection = True


def passes(exchange: Exchange) -> None:
    """As if nothing stood between."""
    found = exchange.forward()
    exchange.answer(found.status_code, exchange.host.trimmed(found.content))


def lost(exchange: Exchange) -> None:
    """The prediction is created, and nobody is told."""
    exchange.forward()
    exchange.drop()


def failing(exchange: Exchange) -> None:
    """The prediction is created, and a proxy says that something failed."""
    exchange.forward()
    exchange.answer(502, b"<html>Bad gateway</html>")


def unreachable(exchange: Exchange) -> None:
    """Nothing is created, and nobody is told."""
    exchange.drop()


def refuses(status: int, detail: str, **headers: str) -> Mishap:
    """The API says no."""

    def refuse(exchange: Exchange) -> None:
        exchange.answer(status, json.dumps({"detail": detail, "status": status}).encode(), **headers)

    return refuse


@dataclass
class Hanging:
    """The prediction is created, and the answer waits until `release` is set."""

    created: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def __call__(self, exchange: Exchange) -> None:
        found = exchange.forward()
        self.created.set()
        self.release.wait(120)
        exchange.answer(found.status_code, exchange.host.trimmed(found.content))


@dataclass
class ApiHost:
    """`creations` holds the bodies of all requests for a prediction; `mishaps` happen to the next ones.

    `without` names keys that the objects lack.
    """

    simulator: Simulator
    url: str = ""
    creations: list[dict[str, Any]] = field(default_factory=list)
    mishaps: list[Mishap] = field(default_factory=list)
    without: frozenset[str] = frozenset()

    def trimmed(self, content: bytes) -> bytes:
        """An answer of the simulator as this host gives it."""
        document = json.loads(
            content.replace(self.simulator.url.encode() + b"/v1", self.url.encode() + b"/v1")
        )
        for item in [document, *document.get("results", [])]:
            for key in self.without:
                item.pop(key, None)
        return json.dumps(document).encode()


@contextmanager
def api_host(simulator: Simulator) -> Iterator[ApiHost]:
    """Run one on a free port of 127.0.0.1."""
    host = ApiHost(simulator)
    lock = threading.Lock()

    class Handler(Answering):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            passes(Exchange(self, b"", host))

        def do_POST(self) -> None:
            body = self.body()
            happens: Mishap = passes
            if self.path.endswith("/predictions"):
                with lock:
                    host.creations.append(json.loads(body))
                    happens = host.mishaps.pop(0) if host.mishaps else passes
            happens(Exchange(self, body, host))

    with serving(Handler) as host.url:
        yield host


def predictions(simulator: Simulator) -> list[dict[str, Any]]:
    """All predictions of the account, whole, the oldest first."""
    headers = {"authorization": f"Bearer {simulator.token}"}
    with httpx.Client(
        base_url=simulator.url, headers=headers, timeout=60, trust_env=False, verify=False
    ) as client:
        path, found = "/v1/predictions", []
        while path:
            page = client.get(path).json()
            found += [client.get(f"/v1/predictions/{item['id']}").json() for item in page["results"]]
            path = page["next"]
    return found[::-1]
