"""Replicate's API, read only: single objects, and lists whose long values are cut while they come in.

A page is `{"next": …, "results": [{"id": …, "output": …}, …]}`. Each value in an item that takes more than
`LONG` bytes, or nests deeper than `DEEP` levels, becomes null, so that a page is small whatever stands in it;
whoever needs such a value fetches the item. What lies deeper than the members of items is passed over in
large pieces; all else takes a step for each sign, of which a page may have `MOST_STEPS`.

Predictions are created with the official client instead; see `docs/decisions.md`. The token goes to the one
host of `REPLICATE_BASE_URL`, and redirects are not followed, so that it cannot travel.
Source of paths, limits and forms: Replicate's OpenAPI document of 2026-03-16.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import accumulate
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from app.core.answers import http_date, retry_after
from app.core.errors import OutkeepError, Permanent, Transient
from app.core.manifest import format_time
from app.core.names import Kind
from app.core.prediction import is_heavy
from app.replicate.guard import network_errors
from app.replicate.lookups import Lookups

LONG = 16 << 10
"""Bytes of the longest value that stays: the times, states and addresses that we read are much shorter."""

DEEP = 100
"""Levels of the deepest value that stays."""

MOST_STEPS = 1_000_000
"""About a second of work; a page of a hundred predictions takes some ten thousand."""

_ITEM = 3
"""How deep the members of an item lie: below the page, its `results` and the item."""

_OUTSIDE = re.compile(rb'[^"{}\[\],:]*+["{}\[\],:]')
_DEEPER = re.compile(rb'(?:[^"{}\[\]]++|"[^"\\]*+")*+["{}\[\]]')
_INSIDE = re.compile(rb'(?:[^"\\]++|\\.)*+["\\]', re.DOTALL)
"""Up to the next byte that means something: of an item, in what lies deeper, where plain texts are passed
over as a whole, and in a text."""

_PIECE = re.compile(rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_PIECE_BYTES = 1024
_SIGNED = bytes.maketrans(b"{[}]", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(sign for sign in range(256) if sign not in b"{[}]")
"""For what lies deeper: whole texts are left out, and brackets become 1 and -1."""


class Trimmed:
    """Takes the bytes of one page, block by block. What is no JSON stays so, save where it is cut."""

    def __init__(self, *, long: int = LONG) -> None:
        self.kept = bytearray()
        """What is left of all that was fed."""
        self._long = long
        self._depth = 0
        self._in_text = False
        self._is_escaped = False
        self._value: int | None = None
        """Where in `kept` the value of a member begins, while it is read."""
        self._is_cut = False
        self._steps = 0

    def feed(self, block: bytes) -> None:
        """Take the next bytes; raises `Permanent` (`api_too_large`) after `MOST_STEPS`."""
        at = by_sign = 0
        while at < len(block):
            if at >= by_sign and self._depth > _ITEM and not self._in_text:
                end = self._pass_over(block, at)
                if end > at:
                    self._keep(block[at:end])
                    at = end
                    continue
                by_sign = at + _PIECE_BYTES
            self._steps += 1
            if self._steps > MOST_STEPS:
                raise Permanent("api_too_large", "a page of a list of the API holds too many values")
            if self._is_escaped:
                self._is_escaped = False
                end = at + 1
                self._keep(block[at:end])
            elif found := self._pattern.match(block, at):
                end = found.end()
                self._keep(block[at : end - 1])
                self._meet(block[end - 1 : end])
            else:
                end = len(block)
                self._keep(block[at:])
            at = end

    def _pass_over(self, block: bytes, at: int) -> int:
        """Where the piece ends that begins there, if all of it lies deeper than the members of an item."""
        found = _PIECE.match(block, at, at + _PIECE_BYTES)
        piece = found[0] if found else b""
        signs = memoryview(_TEXT.sub(b"", piece).translate(_SIGNED, _NO_BRACKETS)).cast("b")
        depths = list(accumulate(signs, initial=self._depth))
        if min(depths) <= _ITEM:
            return at
        if max(depths) > _ITEM + DEEP:
            self._cut()
        self._depth = depths[-1]
        return at + len(piece)

    @property
    def _pattern(self) -> re.Pattern[bytes]:
        if self._in_text:
            return _INSIDE
        return _OUTSIDE if self._depth <= _ITEM else _DEEPER

    def _meet(self, sign: bytes) -> None:
        if self._in_text:
            self._is_escaped = sign == b"\\"
            self._in_text = sign != b'"'
        elif sign == b'"':
            self._in_text = True
        elif sign in b"{[":
            self._depth += 1
            if self._depth > _ITEM + DEEP:
                self._cut()
        elif self._depth == _ITEM and sign in b",}":
            self._value, self._is_cut = None, False
        if not self._in_text and sign in b"}]":
            self._depth -= 1
        self._keep(sign)
        if not self._in_text and sign == b":" and self._depth == _ITEM:
            self._value = len(self.kept)

    def _keep(self, piece: bytes) -> None:
        if self._is_cut:
            return
        self.kept += piece
        if self._value is not None and len(self.kept) - self._value > self._long:
            self._cut()

    def _cut(self) -> None:
        if self._value is not None and not self._is_cut:
            del self.kept[self._value :]
            self.kept += b"null"
            self._is_cut = True


Object = dict[str, Any]

MAX_ANSWER = 64 << 20
"""Bytes of an answer that are held in memory."""

MAX_LIST = 1 << 30
"""Bytes of a page of a list, of which what is long is cut out as it comes in."""

OK = range(200, 300)
"""Statuses of success."""

_ADD_CREDIT = "add credit or a payment method at https://replicate.com/account/billing"
_OF_CREDIT = re.compile(r"credit|payment|billing", re.IGNORECASE)
_TOO_MANY, _UNPAID, _REFUSED, _NOT_THERE = 429, 402, frozenset({401, 403}), frozenset({404, 410})
_BLOCK = _LONGEST_PROBLEM = 1 << 16


async def read_whole(answer: aiohttp.ClientResponse) -> bytes:
    """The body of an answer; raises `Permanent` (`api_too_large`)."""
    body = bytearray()
    async for block in answer.content.iter_chunked(_BLOCK):
        body += block
        _require_room(len(body), MAX_ANSWER)
    return bytes(body)


async def read_list(answer: aiohttp.ClientResponse) -> bytes:
    """The same of a page of a list, without what is long."""
    page, size = Trimmed(), 0
    async for block in answer.content.iter_chunked(_BLOCK):
        page.feed(block)
        size += len(block)
        _require_room(size, MAX_LIST)
        _require_room(len(page.kept), MAX_ANSWER)
    return bytes(page.kept)


def _require_room(size: int, most: int) -> None:
    if size > most:
        raise Permanent("api_too_large", f"an answer of the API is larger than {most >> 20} MiB")


def judge(status: int, headers: Mapping[str, str], body: bytes, path: str) -> Object:
    """The object in an answer, or the error that it means."""
    where = path.partition("?")[0]
    if status in OK:
        answer = _object(body)
        if answer is None:
            raise Transient("api_failed", f"the answer to {where} is not a JSON object")
        return answer
    problem = _object(body[:_LONGEST_PROBLEM]) or {}
    said = str(problem.get("detail") or problem.get("title") or f"status {status}")[:300]
    if status == _TOO_MANY:
        hint = f"; {_ADD_CREDIT} for the usual limits" if _OF_CREDIT.search(said) else ""
        message = f"Replicate takes no more requests for now: {said}{hint}"
        raise Transient("api_busy", message, retry_after=_wait(headers, problem))
    if status in _REFUSED:
        raise Permanent("api_refused", f"REPLICATE_API_TOKEN is refused for {where}: {said}")
    if status == _UNPAID:
        raise Permanent("api_unpaid", f"the account has no credit for {where}: {said}; {_ADD_CREDIT}")
    if status in _NOT_THERE:
        raise Permanent("api_absent", f"{where} does not exist: {said}")
    if status not in range(400, 500):
        raise Transient("api_failed", f"{where} failed: {said}", retry_after=_wait(headers, problem))
    raise Permanent("api_rejected", f"{where} was rejected: {said}")


def _wait(headers: Mapping[str, str], problem: Object) -> float | None:
    """What a 429 asks for: a header, or `retry_after` in its body."""
    answered = http_date(headers.get("date"))  # a date counts by the clock of who names it
    now = answered.timestamp() if answered else time.time()
    asked = retry_after(headers.get("retry-after"), now=now)
    said = problem.get("retry_after")
    if asked is None and isinstance(said, int | float) and not isinstance(said, bool) and said >= 0:
        return float(said)
    return asked


def _object(body: bytes) -> Object | None:
    if is_heavy(body):
        raise Permanent("api_too_large", "an answer of the API holds too many values")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


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
