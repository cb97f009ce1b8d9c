"""The few calls of Replicate's API that we make. Answers stay raw JSON: typed models refuse real objects.

Predictions are created with the official client instead; see `docs/decisions.md`. The token goes to the one
host of `REPLICATE_BASE_URL`, and redirects are not followed, so that it cannot travel.
Source of paths, limits and forms: Replicate's OpenAPI document of 2026-03-16.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from app.core.errors import OutkeepError, Permanent, Transient
from app.core.manifest import format_time
from app.core.names import Kind
from app.core.retry_after import http_date
from app.replicate.answers import OK, Object, judge, read_list, read_whole
from app.replicate.guard import network_errors
from app.replicate.lookups import Lookups

TIMEOUT = 30.0
"""Seconds that one call may take."""

SILENCE = 30.0
"""Seconds in which no byte comes, after which a call has failed however long it may take."""

LIST_TIMEOUT = 300.0
"""Seconds that a page of a list may take: a hundred predictions with inline outputs."""

_ABSENT, _FAILED = 404, 500

Read = Callable[[aiohttp.ClientResponse], Awaitable[bytes]]


class Root:
    """What the paths of the API follow at a base URL.

    That is `/v1` there, as Replicate's client has it. A gateway may stand in the place of all of
    `https://api.replicate.com/v1`, as Cloudflare's does, so a base URL with a path is tried first.
    """

    def __init__(self, base_url: str) -> None:
        """`base_url` has neither `/v1` nor a slash at its end."""
        self._base = base_url
        self._found = None if urlsplit(base_url).path else f"{base_url}/v1"

    async def find(self, ask: Callable[[str], Awaitable[int]]) -> str:
        """It, without a slash at its end; `ask` gives the status of a GET of a URL, or raises."""
        if self._found is not None:
            return self._found
        for root in (f"{self._base}/v1", self._base):
            status = await ask(f"{root}/predictions")
            if status != _ABSENT:
                if status < _FAILED:
                    self._found = root
                return root
        return f"{self._base}/v1"


@dataclass(frozen=True)
class Page:
    """One page of a list; `following` is the path of the next one, None at the end."""

    items: tuple[Object, ...]
    following: str | None
    at: datetime | None
    """When it was answered, by the clock of the API: ours may be wrong."""


Call = Callable[[Callable[[], Awaitable[Page]]], Awaitable[Page]]


async def _now(ask: Callable[[], Awaitable[Page]]) -> Page:
    return await ask()


@dataclass(frozen=True)
class Api:
    """Calls over one session. All raise `Transient` when trying again may help, else `Permanent`.

    Codes: `api_unreachable`, `api_busy` (429, with `retry_after`), `api_failed` (5xx, or no JSON),
    `api_refused` (the token), `api_unpaid` (402), `api_absent` (404), `api_too_large`, `api_rejected` (any
    other answer; the message says why).
    """

    base_url: str
    """Without `/v1` and without a slash at the end."""
    session: aiohttp.ClientSession = field(repr=False)
    root: Root = field(repr=False)

    async def get(self, path: str, *, timeout: float = TIMEOUT, read: Read = read_whole) -> Object:  # noqa: ASYNC109 - its end is an error of ours
        """The JSON object at a path such as `/v1/predictions/…`; `read` takes the body in."""
        host = urlsplit(self.base_url).hostname or self.base_url
        try:
            async with asyncio.timeout(timeout):
                with network_errors(host):
                    root = await self.root.find(self._status)
                    url = URL(root + path.removeprefix("/v1"), encoded=True)
                    async with self.session.get(url, allow_redirects=False) as answer:
                        body = await (read if answer.status in OK else read_whole)(answer)
                        return judge(answer.status, answer.headers, body, path)
        except TimeoutError:
            raise Transient("api_unreachable", f"{host} did not answer within {timeout:.0f} s") from None
        except OutkeepError as error:
            if error.code.startswith("api_"):
                raise
            raise Transient("api_unreachable", error.message) from error

    async def _status(self, url: str) -> int:
        async with self.session.get(url, allow_redirects=False) as answer:
            return answer.status

    async def webhook_secret(self, *, timeout: float = TIMEOUT) -> str:  # noqa: ASYNC109
        """The `whsec_…` that webhooks of this account are signed with."""
        answer = await self.get("/v1/webhooks/default/secret", timeout=timeout)
        key = answer.get("key")
        if not isinstance(key, str):
            raise Permanent("api_rejected", "the answer about the webhook secret has no key")
        return key

    async def one(self, kind: Kind, identity: str) -> Object:
        """A prediction or training, whole."""
        return await self.get(f"/v1/{kind.folder}/{quote(identity, safe='')}")

    async def page(self, kind: Kind, following: str | None = None, **wanted: str) -> Page:
        """A page of the list, newest first; `wanted` are parameters of the first, such as `created_after`.

        Values of items that are long come as null; see `app.core.trimming`.
        """
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in wanted.items())
        path = following or f"/v1/{kind.folder}{f'?{query}' if query else ''}"
        dates: list[str | None] = []

        async def read(answer: aiohttp.ClientResponse) -> bytes:
            dates.append(answer.headers.get("date"))
            return await read_list(answer)

        answer = await self.get(path, timeout=LIST_TIMEOUT, read=read)
        items = answer.get("results")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise Transient("api_failed", f"the answer to {path.partition('?')[0]} is not a list")
        after = _following(answer.get("next"), f"/v1/{kind.folder}")
        return Page(tuple(items), after, http_date(dates[0]))

    async def pages(self, kind: Kind, call: Call, **wanted: str) -> AsyncIterator[Page]:
        """All pages of the list as `page` has them, each asked for by `call`."""
        seen = set[str]()
        page = await call(partial(self.page, kind, **wanted))
        yield page
        while (following := page.following) is not None:
            if following in seen:
                raise Transient("api_failed", f"the list of {kind.folder} leads back to where it was")
            seen.add(following)
            page = await call(partial(self.page, kind, following))
            yield page

    async def newest(self, kind: Kind, created_after: datetime | None = None) -> AsyncIterator[Object]:
        """All items of the list, newest first; they lack logs and more: fetch each one before use."""
        wanted = {"created_after": format_time(created_after)} if created_after else {}
        async for page in self.pages(kind, _now, **wanted):
            for item in page.items:
                yield item


@asynccontextmanager
async def connected(base_url: str, token: str) -> AsyncIterator[Api]:
    """An `Api` for the length of the block; needs a running loop.

    The operator names this host, so that it may have any address; proxies of the environment count.
    """
    headers = {"Authorization": f"Bearer {token}", "User-Agent": "outkeep", "Accept": "application/json"}
    session = aiohttp.ClientSession(
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        # aiohttp would look for passwords in ~/.netrc as well, and refuse to send our token beside one.
        trust_env=False,
        proxy=_proxy(base_url),
        connector=aiohttp.TCPConnector(resolver=Lookups()),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE),
    )
    async with session:
        yield Api(base_url, session, Root(base_url))


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _following(url: Any, path: str) -> str | None:
    """Path and query of the next page of the list at `path`; None at the end.

    Behind a gateway or a proxy the link may name Replicate's own origin, or one that only the gateway knows.
    Its query counts: it is asked at the base URL, so that our token goes nowhere else. Raises `Transient`.
    """
    if not url:
        return None
    try:
        parts = urlsplit(url) if isinstance(url, str) and url.isascii() and url.isprintable() else None
    except ValueError:
        parts = None
    if parts is None or not parts.path.endswith(path.removeprefix("/v1")) or not parts.query:
        raise Transient("api_failed", f"the next page that the list at {path} names is none of that list")
    return f"{path}?{parts.query}"
