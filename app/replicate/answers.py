"""What comes back from Replicate's API: read within bounds, and told apart. Answers stay raw JSON."""

import json
import re
import time
from collections.abc import Mapping
from typing import Any

import aiohttp

from app.core.errors import Permanent, Transient
from app.core.prediction import is_heavy
from app.core.retry_after import http_date, retry_after
from app.core.trimming import Trimmed

Object = dict[str, Any]

MAX_ANSWER = 64 << 20
"""Bytes of an answer that are held in memory."""

MAX_LIST = 1 << 30
"""Bytes of a page of a list, of which what is long is cut out as it comes in."""

OK = range(200, 300)
"""Statuses of success."""

_ADD_CREDIT = "add credit or a payment method at https://replicate.com/account/billing"
_OF_CREDIT = re.compile(r"credit|payment|billing", re.IGNORECASE)
_TOO_MANY, _UNPAID, _REFUSED, _ABSENT = 429, 402, frozenset({401, 403}), frozenset({404, 410})
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
    if status in _ABSENT:
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
