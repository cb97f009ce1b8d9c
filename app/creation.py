"""Creating predictions and uploading their files, by Replicate's official client.

The answers are judged by our own rules, so that a refusal comes in the API's words and a 429 with its wait.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from replicate.client import Client

from app.core.errors import Transient
from app.core.models import Model
from app.replicate import judge

TIMEOUT = 60.0
"""Seconds that the creation of a prediction may take; an upload has the time of its job."""

UNCERTAIN = frozenset({"api_failed", "api_unanswered"})
"""Codes after which a prediction may have been created all the same."""

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


@dataclass(frozen=True)
class Creator:
    """Calls of one client. All raise `Transient` or `Permanent` with the codes of `app.replicate.Api`.

    One more is `api_unanswered`: the API was asked, and did not answer as it should.
    """

    client: Client = field(repr=False)
    timeout: float = TIMEOUT

    async def create(
        self, model: Model, given: Mapping[str, Any], *, webhook: str | None, events: Sequence[str]
    ) -> str:
        """Create a prediction; its id."""
        wanted: dict[str, Any] = {"input": dict(given)}
        if webhook is not None:
            wanted |= {"webhook": webhook, "webhook_events_filter": list(events)}
        if model.is_deployment:
            wanted["deployment"] = model.name
        elif model.version is not None:
            wanted["version"] = model.version
        else:
            wanted["model"] = model.name
        with _errors():
            async with asyncio.timeout(self.timeout):
                prediction = await self.client.predictions.async_create(**wanted)
        return str(prediction.id)

    async def upload(self, path: Path, *, name: str, media_type: str | None) -> str:
        """Upload a file as an input; its URL, which Replicate keeps for a day."""
        with _errors(), path.open("rb") as file:
            given: dict[str, Any] = {"content_type": media_type} if media_type else {}
            uploaded = await self.client.files.async_create(file, filename=name, **given)
        return str(uploaded.urls["get"])


@asynccontextmanager
async def creating(base_url: str, token: str, *, timeout: float = TIMEOUT) -> AsyncIterator[Creator]:  # noqa: ASYNC109
    """A `Creator` for the length of the block; needs a running loop."""
    transport = httpx.AsyncHTTPTransport()
    # Anything but a 2xx would be raised by the client without the headers that say how long to wait.
    hooks = {"response": [_judge]}
    client = Client(api_token=token, base_url=base_url, transport=transport, event_hooks=hooks)
    try:
        yield Creator(client, timeout)
    finally:
        await transport.aclose()


async def _judge(answer: httpx.Response) -> None:
    body = await answer.aread()
    judge(answer.status_code, answer.headers, body, answer.request.url.path)


@contextmanager
def _errors() -> Iterator[None]:
    """Keep the errors of the client, of pydantic and of httpx in this module."""
    try:
        yield
    except _NEVER_SENT as error:
        raise Transient("api_unreachable", f"the API cannot be reached ({type(error).__name__})") from error
    except (httpx.HTTPError, TimeoutError) as error:
        raise Transient("api_unanswered", f"the API did not answer ({type(error).__name__})") from error
    except (ValueError, KeyError, TypeError) as error:  # its models refuse real objects now and then
        reason = f"the API's answer cannot be read ({type(error).__name__})"
        raise Transient("api_unanswered", reason) from error
