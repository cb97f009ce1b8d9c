"""A downstream server on a port that keeps every request as it came, and verifies it three ways."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from replicate.webhook import Webhooks, WebhookSigningSecret
from standardwebhooks import Webhook as StandardWebhook
from svix.webhooks import Webhook as SvixWebhook

from tests.serving import Answering, serving

DEFAULT_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass(frozen=True)
class Received:
    """One request: `headers` in order as they came, `body` raw."""

    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        """The value of a header that came exactly once."""
        (value,) = [value for key, value in self.headers if key.lower() == name]
        return value

    @property
    def event(self) -> dict[str, Any]:
        """The body as JSON."""
        event: dict[str, Any] = json.loads(self.body)
        return event


class Slow:
    """An answer that takes a while; `open` counts those on their way."""

    def __init__(self, seconds: float = 0.1) -> None:
        self.open = 0
        self._seconds = seconds
        self._lock = threading.Lock()

    def __call__(self, request: Received) -> int:
        with self._lock:
            self.open += 1
        threading.Event().wait(self._seconds)
        with self._lock:
            self.open -= 1
        return 204


@dataclass
class Recorder:
    """What has arrived; `answer(request)` gives the status to answer with."""

    secret: str = DEFAULT_SECRET
    answer: Callable[[Received], int] = lambda _request: 204
    url: str = ""
    received: list[Received] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def handler(self, name: str = "recorder", *, extra: str = "") -> str:
        """The table of the handlers file that sends here; `extra` holds further lines of it."""
        return f'[[handler]]\nname = "{name}"\nurl = "{self.url}/{name}"\nsecret = "{self.secret}"\n{extra}\n'

    def take(self, request: Received) -> int:
        """Keep a request and decide on the answer."""
        status = self.answer(request)
        with self._changed:
            self.received.append(request)
            self._changed.notify_all()
        return status

    def of(self, prediction_id: str) -> list[Received]:
        """All requests about one prediction."""
        with self._changed:
            return [one for one in self.received if one.event["data"]["id"] == prediction_id]

    def ids(self) -> set[str]:
        """The predictions that something was said about."""
        with self._changed:
            return {one.event["data"]["id"] for one in self.received}

    def wait_for(self, holds: Callable[["Recorder"], bool], what: str, *, seconds: float = 120) -> None:
        """Wait until `holds(self)` is true; fail with `what` after `seconds`. It is asked at each request."""
        with self._changed:
            assert self._changed.wait_for(lambda: holds(self), seconds), f"not within {seconds:g} s: {what}"

    def verify(self, request: Received) -> None:
        """Raise unless the official Replicate, Svix and Standard Webhooks verifiers all accept it."""
        headers = {name.lower(): value for name, value in request.headers}
        SvixWebhook(self.secret).verify(request.body, headers)
        StandardWebhook(self.secret).verify(request.body, headers)
        Webhooks.validate(
            headers=headers,
            body=request.body.decode(),
            secret=WebhookSigningSecret(key=self.secret),
            tolerance=300,
        )


@contextmanager
def recorder(
    *, secret: str = DEFAULT_SECRET, answer: Callable[[Received], int] | None = None
) -> Iterator[Recorder]:
    """Run one on a free port of 127.0.0.1."""
    recording = Recorder(secret=secret)
    if answer is not None:
        recording.answer = answer

    class Handler(Answering):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.body()
            status = recording.take(Received(self.path, list(self.headers.items()), body))
            self.answer(status)

    with serving(Handler) as recording.url:
        yield recording
