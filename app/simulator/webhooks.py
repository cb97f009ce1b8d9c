"""Webhooks of the simulator: signed, retried as Replicate does, and listed for tests."""

import asyncio
import base64
import hmac
import json
import secrets
import string
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import aiohttp
from yarl import URL

REFUSED = 400
"""Status from which on an answer is a refusal; Replicate takes a redirect for delivered."""

_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Attempt:
    """One POST. `subject` is the prediction's id, `status` None when no answer came (`error` says why).

    `timestamp` is what was signed (seconds), `sent_at` is monotonic seconds; `settled` means that no
    further attempt at this event follows.
    """

    subject: str
    event: str
    url: str
    webhook_id: str
    number: int
    timestamp: int
    sent_at: float
    status: int | None
    error: str | None
    settled: bool

    @property
    def failure(self) -> str | None:
        """Why it did not arrive; None when it did."""
        if self.error is not None:
            return self.error
        return f"answered {self.status}" if self.status is None or self.status >= REFUSED else None


class Attempts:
    """The newest ten thousand attempts, in the order in which they ended; `watch` is called with each."""

    def __init__(self, watch: Callable[[Attempt], None] = lambda _: None) -> None:
        self._watch = watch
        self._changed = threading.Condition()
        self._kept: deque[Attempt] = deque(maxlen=_KEPT)

    def record(self, attempt: Attempt) -> None:
        """Add one and wake whoever waits."""
        with self._changed:
            self._kept.append(attempt)
            self._changed.notify_all()
        self._watch(attempt)

    def of(self, subject: str) -> list[Attempt]:
        """All attempts about one prediction."""
        with self._changed:
            return [attempt for attempt in self._kept if attempt.subject == subject]

    def wait(self, subject: str, enough: Callable[[list[Attempt]], bool], timeout: float) -> list[Attempt]:
        """The attempts about one prediction, once there are enough. Raises `TimeoutError` (seconds)."""
        with self._changed:
            if self._changed.wait_for(lambda: enough(self.of(subject)), timeout):
                return self.of(subject)
        raise TimeoutError(f"after {timeout} s the attempts about {subject} are {self.of(subject)}")


RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0, 29.0)
"""Seconds before each retry of a terminal webhook: the last comes a minute after completion."""

EVENT_INTERVAL = 0.5
"""Seconds between two `output` or `logs` events of one prediction."""

_USER_AGENT = "Webhooks/1.66.0 (simulator)"
_ATTEMPT_TIMEOUT = aiohttp.ClientTimeout(total=10)
_LETTERS = string.digits + string.ascii_letters


def new_secret() -> str:
    """A signing secret: `whsec_` and 24 random bytes."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}"


def new_webhook_id() -> str:
    """`msg_` and 27 letters or digits, as in recordings."""
    return "msg_" + "".join(secrets.choice(_LETTERS) for _ in range(27))


def signing_key(secret: str) -> bytes:
    """The key in `whsec_<base64>`. Raises `ValueError`."""
    if not secret.startswith("whsec_"):
        raise ValueError("a webhook secret starts with whsec_")
    return base64.b64decode(secret.removeprefix("whsec_"), validate=True)


def sign(secret: str, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`. Our verifier is not used: this is the other side."""
    message = f"{webhook_id}.{timestamp}.".encode() + body
    return f"v1,{base64.b64encode(hmac.digest(signing_key(secret), message, 'sha256')).decode()}"


def to_body(prediction: Mapping[str, Any]) -> bytes:
    """The object as compact JSON with sorted keys, as recorded."""
    return json.dumps(prediction, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class Webhook:
    """One event on its way: `subject` is the prediction's id, `url` is requested exactly as given."""

    subject: str
    event: str
    url: str
    body: bytes
    webhook_id: str
    terminal: bool


class Throttle:
    """Lets one `output` or `logs` event of a prediction through per `interval` seconds."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._next = 0.0

    def admits(self, now: float) -> bool:
        """Whether an event at `now` (monotonic seconds) may go; what is held back is not sent later."""
        if now < self._next:
            return False
        self._next = now + self._interval
        return True


class Sender:
    """Signs and posts; every attempt is written into `attempts`."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        attempts: Attempts,
        *,
        secret: str,
        retry_delays: Sequence[float] = RETRY_DELAYS,
    ) -> None:
        self._session = session
        self._attempts = attempts
        self.secret = secret
        self._retry_delays = tuple(retry_delays)

    async def send(self, webhook: Webhook) -> None:
        """Deliver one event: once, or with retries when it is terminal. Returns when it is settled."""
        delays = (0.0, *(self._retry_delays if webhook.terminal else ()))
        for number, delay in enumerate(delays, start=1):
            await asyncio.sleep(delay)
            timestamp = int(time.time())
            sent_at = time.monotonic()
            status, error = await self._post(webhook, timestamp)
            delivered = status is not None and status < REFUSED
            settled = delivered or number == len(delays)
            self._attempts.record(
                Attempt(
                    subject=webhook.subject,
                    event=webhook.event,
                    url=webhook.url,
                    webhook_id=webhook.webhook_id,
                    number=number,
                    timestamp=timestamp,
                    sent_at=sent_at,
                    status=status,
                    error=error,
                    settled=settled,
                )
            )
            if settled:
                return

    async def _post(self, webhook: Webhook, timestamp: int) -> tuple[int | None, str | None]:
        headers = {
            "content-type": "application/json",
            "accept-encoding": "gzip",
            "user-agent": _USER_AGENT,
            "webhook-id": webhook.webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self.secret, webhook.webhook_id, timestamp, webhook.body),
        }
        try:
            async with self._session.post(
                URL(webhook.url, encoded=True),
                data=BytesIO(webhook.body),  # aiohttp takes large bytes for a mistake
                headers=headers,
                allow_redirects=False,
                skip_auto_headers=("accept",),
                timeout=_ATTEMPT_TIMEOUT,
            ) as response:
                return response.status, None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            return None, f"{type(error).__name__}: {error}"
