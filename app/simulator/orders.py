"""Requests to the simulated API: how they are read, counted and refused."""

import hmac
import re
import threading
from collections import Counter
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.errors import Permanent, Rejected
from app.core.names import Kind
from app.core.notation import cancel_after, duration
from app.simulator.models import model_named, model_of_version
from app.simulator.state import EVENTS, Filter, Object, Order, moment


class NeedsToken:
    """Lets requests with the right bearer token through; the others get 401."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        given = dict(scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(given, self._expected):
            await self._app(scope, receive, send)
        else:
            detail = "You did not pass a valid authentication token"
            await problem(401, detail)(scope, receive, send)


def problem(status: int, detail: str) -> Response:
    """An answer of `application/problem+json`."""
    return JSONResponse({"detail": detail, "status": status}, status, media_type="application/problem+json")


def refuse(_request: Request, error: Exception) -> Response:
    """What our own refusals become."""
    assert isinstance(error, Rejected)
    return problem(error.status, error.message)


def refuse_route(_request: Request, error: Exception) -> Response:
    """What the router's refusals become."""
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail)


_PREFER_WAIT = re.compile(r"\bwait(?:\s*=\s*(\d{1,4}))?(?![\w-])", re.ASCII)
_DEFAULT_WAIT = 60


def _refused(detail: str) -> Rejected:
    return Rejected("validation", detail, status=422)


def read_order(
    kind: Kind,
    body: object,
    *,
    model: str | None = None,
    version: str | None = None,
    cancel_after: str | None = None,
) -> Order:
    """The order in a JSON body; `model` and `version` come from the route, else from the body.

    `cancel_after` is the header of that name.

    Raises `Rejected` (422). A webhook on plain http is fine here: everything is local.
    """
    if not isinstance(body, dict):
        raise _refused("The body must be a JSON object.")
    if version is None:
        version = _text(body, "version")
        if not version:
            raise _refused("- version is required")
    if model is None:
        model = model_of_version(version)
    destination = _text(body, "destination")
    if kind is Kind.TRAINING and not re.fullmatch(r"[^/\s]+/[^/\s]+", destination or ""):
        raise _refused("- destination must be owner/name")
    return Order(
        kind=kind,
        model=model,
        version=version.rpartition(":")[2],
        input=_input(body),
        destination=destination,
        webhook=_webhook(body),
        events=_events(body),
        cancel_after=_cancel_after(cancel_after),
        # Asking for a stream of a model that has none is no mistake: the URL is missing then.
        streams=body.get("stream") is True and model_named(model).streams,
    )


def _text(body: Object, key: str) -> str | None:
    value = body.get(key)
    if value is not None and not isinstance(value, str):
        raise _refused(f"- {key} must be a string")
    return value


def _input(body: Object) -> Object:
    given = body.get("input")
    if not isinstance(given, dict):
        raise _refused("- input is required and must be an object")
    return given


def _webhook(body: Object) -> str | None:
    url = _text(body, "webhook")
    if url is None:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _refused("- webhook must be a URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise _refused("- webhook must be a URL")
    return url


def _events(body: Object) -> tuple[str, ...] | None:
    events = body.get("webhook_events_filter")
    if events is None:
        return None
    if not isinstance(events, list) or not all(event in EVENTS for event in events):
        raise _refused(f"- webhook_events_filter must be a list of {', '.join(EVENTS)}")
    return tuple(events)


def _cancel_after(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return duration(cancel_after(text))
    except Permanent:
        raise _refused("- Cancel-After must be a duration from 5s to 24h, such as 1h30m45s") from None


def read_wait(prefer: str) -> int | None:
    """Seconds asked for by a `Prefer` header (1 to 60, 60 without a number), None without `wait`."""
    found = _PREFER_WAIT.search(prefer)
    if found is None:
        return None
    return min(max(int(found[1] or _DEFAULT_WAIT), 1), _DEFAULT_WAIT)


def read_filter(query: Mapping[str, str]) -> Filter:
    """What a list is asked for; raises `Rejected` (422) for a time that cannot be read."""
    times = {}
    for key in ("created_after", "created_before"):
        text = query.get(key)
        try:
            # A `+` that nobody encoded arrives as a space.
            times[key] = moment(text.replace(" ", "+")) if text else None
        except ValueError:
            raise _refused(f"- {key} must be an RFC 3339 time") from None
    return Filter(**times, source=query.get("source"))


class Traffic:
    """Counts requests of the API; any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._refusals: list[tuple[int, int | None]] = []

    def count(self, path: str) -> int:
        """How many requests there were whose path matches the expression `path` as a whole."""
        with self._lock:
            return sum(count for each, count in self._counts.items() if re.fullmatch(path, each))

    def refuse(self, times: int, status: int, retry_after: int | None) -> None:
        """Answer the next `times` requests so."""
        with self._lock:
            self._refusals += [(status, retry_after)] * times

    def take(self, path: str) -> tuple[int, int | None] | None:
        """Note a request; the status and the wait to refuse it with, or None."""
        with self._lock:
            self._counts[path] += 1
            return self._refusals.pop(0) if self._refusals else None


class Counted:
    """Lets requests through, except those that are to be refused."""

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self._app = app
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it as Replicate does: the wait stands in the body."""
        refusal = self._traffic.take(Request(scope).url.path)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, wait = refusal
        body = {"detail": f"Refused with {status}.", "status": status}
        answer = JSONResponse(body if wait is None else {**body, "retry_after": wait}, status)
        await answer(scope, receive, send)
