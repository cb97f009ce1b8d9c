"""Create predictions and upload their files with Replicate's official client, within its rate limit.

Answers are judged by our own rules, so that a refusal comes in the words of the API and a 429 with its wait.
They are read raw: the models of the client refuse real objects, and what was created must be known.

The key holds when the next creation would be due if they came evenly (Redis' own clock, in seconds); a few
may come at once.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis

from app.core.errors import Permanent, Transient
from app.core.names import CREATIONS
from app.core.request import Model
from app.replicate.client import Object, judge

if TYPE_CHECKING:
    import httpx
    from replicate.client import Client

TIMEOUT = 60.0
"""Seconds that the creation of a prediction may take; an upload has the time of its job."""

UNCERTAIN = frozenset({"api_failed", "api_unanswered"})
"""Codes after which a prediction may have been created all the same."""

_answer: ContextVar[list[Object]] = ContextVar("answer")
"""What the API answered to the call that this task makes."""

_cancel_after: ContextVar[str | None] = ContextVar("cancel_after", default=None)
"""What the creation that this task makes has in its header `Cancel-After`."""


@dataclass(frozen=True)
class Creator:
    """Calls of one client. All raise `Transient` or `Permanent` with the codes of `app.replicate.client.Api`.

    One more is `api_unanswered`: the API was asked, and did not answer as it should.
    """

    client: "Client" = field(repr=False)
    timeout: float = TIMEOUT

    async def create(
        self,
        model: Model,
        given: Mapping[str, Any],
        *,
        webhook: str | None,
        events: Sequence[str],
        cancel_after: str | None = None,
    ) -> Object:
        """Create a prediction; its object, which has an `id`.

        A model that runs by its versions alone is run by its latest one. `cancel_after` is the value of
        Replicate's header of that name, which the client has no argument for.
        """
        marker = _cancel_after.set(cancel_after)
        try:
            return await self._create_by_any_way(model, given, webhook, events)
        finally:
            _cancel_after.reset(marker)

    async def _create_by_any_way(
        self, model: Model, given: Mapping[str, Any], webhook: str | None, events: Sequence[str]
    ) -> Object:
        wanted: dict[str, Any] = {"input": dict(given)}
        if webhook is not None:
            wanted |= {"webhook": webhook, "webhook_events_filter": list(events)}
        if model.is_deployment:
            return await self._create({"deployment": model.name, **wanted})
        if model.version is not None:
            return await self._create({"version": model.version, **wanted})
        try:
            return await self._create({"model": model.name, **wanted})
        except Permanent as error:
            if error.code != "api_absent":
                raise
        return await self._create({"version": await self._latest(model.name), **wanted})

    async def cancel(self, prediction_id: str) -> Object:
        """Ask for the end of a prediction; its object."""
        return await self._call(self.client.predictions.async_cancel(prediction_id), timeout=self.timeout)

    async def upload(self, path: Path, *, name: str, media_type: str | None) -> str:
        """Upload a file as an input; its URL, which Replicate keeps for a day."""
        given: dict[str, Any] = {"content_type": media_type} if media_type else {}
        with path.open("rb") as file:
            uploaded = await self._call(
                self.client.files.async_create(file, filename=name, **given), timeout=None
            )
        urls = uploaded.get("urls")
        if not isinstance(urls, dict) or not isinstance(urls.get("get"), str):
            raise Transient("api_unanswered", "the API's answer about the uploaded file names no URL")
        return str(urls["get"])

    async def _create(self, wanted: Mapping[str, Any]) -> Object:
        created = await self._call(self.client.predictions.async_create(**wanted), timeout=self.timeout)
        if not isinstance(created.get("id"), str):
            raise Transient("api_unanswered", "the API's answer names no prediction")
        return created

    async def _latest(self, name: str) -> str:
        found = await self._call(self.client.models.async_get(name), timeout=self.timeout)
        version = found.get("latest_version")
        identity = version.get("id") if isinstance(version, dict) else None
        if not isinstance(identity, str):
            raise Permanent("api_absent", f"model {name} has no version that could run")
        return identity

    async def _call(self, call: Coroutine[Any, Any, Any], *, timeout: float | None) -> Object:  # noqa: ASYNC109
        """What the API answered, also when the client's own models do not take it."""
        answers: list[Object] = []
        marker = _answer.set(answers)
        try:
            with _errors():
                async with asyncio.timeout(timeout):
                    await call
        except Transient:
            if not answers:
                raise
        finally:
            _answer.reset(marker)
        return answers[-1]


@asynccontextmanager
async def creating(base_url: str, token: str, *, timeout: float = TIMEOUT) -> AsyncIterator[Creator]:  # noqa: ASYNC109
    """A `Creator` for the length of the block; needs a running loop."""
    from replicate.client import Client  # heavy, and few processes create anything

    from app.replicate.rooted import Rooted

    transport = Rooted(base_url, _cancel_after)
    # Anything but a 2xx would be raised by the client without the headers that say how long to wait.
    hooks = {"response": [_judge]}
    client = Client(api_token=token, base_url=base_url, transport=transport, event_hooks=hooks)
    try:
        yield Creator(client, timeout)
    finally:
        await transport.aclose()


async def _judge(answer: "httpx.Response") -> None:
    body = await answer.aread()
    _answer.get().append(judge(answer.status_code, answer.headers, body, answer.request.url.path))


@contextmanager
def _errors() -> Iterator[None]:
    """Keep the errors of the client, of pydantic and of httpx in this module."""
    import httpx

    never_sent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
    try:
        yield
    except never_sent as error:
        reason = f"the API cannot be reached ({type(error).__name__}): is REPLICATE_BASE_URL right?"
        raise Transient("api_unreachable", reason) from error
    except (httpx.HTTPError, TimeoutError) as error:
        raise Transient("api_unanswered", f"the API did not answer ({type(error).__name__})") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = f"the API's answer cannot be read ({type(error).__name__})"
        raise Transient("api_unanswered", reason) from error


EVERY = 60 / 540
"""Seconds between creations when they come without a break."""

AT_ONCE = 30
"""How many may come together; with those no minute has more than 570."""

_TAKE = """
-- KEYS: 1 the limit
-- ARGV: 1 seconds between creations, 2 how many may come at once
-- Returns how many milliseconds too early this one is; 0 when it may be made now, which is then noted.
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local due = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
local early = due - now - ARGV[1] * (ARGV[2] - 1)
if early > 0 then return math.ceil(early * 1000) end
redis.call('SET', KEYS[1], string.format('%.6f', due + ARGV[1]), 'EX', 120)
return 0
"""


class CreationLimit:
    """The limit that all processes on one Redis share. Errors are redis-py's."""

    def __init__(self, redis: Redis, *, every: float = EVERY, at_once: int = AT_ONCE) -> None:
        self._script = redis.register_script(_TAKE)
        self._arguments = (every, at_once)

    def take(self) -> float:
        """0: a prediction may be created now, and counts; else the seconds until that makes sense."""
        return int(self._script(keys=[CREATIONS], args=self._arguments)) / 1000
