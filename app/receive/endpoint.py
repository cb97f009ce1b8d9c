"""The webhook endpoint: sender → parse → inbox. Nothing is answered with 2xx before it is durable."""

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from http import HTTPStatus

from redis import Redis
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.accept.arrivals import foreign, make_arrival
from app.accept.claim_check import ClaimCheck
from app.accept.inbox import Inbox
from app.accept.quarantine import Aside, Quarantine
from app.accept.records import Accepted, Arrival
from app.accept.spool import Spool, Spooled
from app.core.context import ContextKeys, Query, gathered, parent, split_query
from app.core.errors import Rejected, Transient, Unusable
from app.core.manifest import Receipt
from app.core.names import Kind
from app.core.policy import believed
from app.core.prediction import is_progress, parse
from app.core.vocabulary import DELAYED, RECEIVED, REFUSED
from app.receive.bodies import TOO_LARGE, apart
from app.receive.headers import POLICY
from app.receive.keyring import SECRET_MISSING
from app.receive.senders import BAD_TOKEN, TOO_MANY_TOKENS, Authenticated, Sender
from app.telemetry.tally import Tally

RETRY_AFTER = 2
"""Seconds after which a sender should try again: more than the breaker needs to close."""

SPOOLED = "spooled"
QUARANTINED = "quarantined"

_TAKEN = frozenset({Accepted.ACCEPTED, SPOOLED})
_UNREAD = frozenset(
    {TOO_LARGE, "content_encoding", "busy", "no_room", BAD_TOKEN, TOO_MANY_TOKENS, SECRET_MISSING}
)
_CREDENTIALS = frozenset({"authorization", "cookie", "proxy-authorization"})
"""Headers that are not written down: some proxies add their own."""

QUARANTINERS = 4
"""Deliveries that are set aside at the same time."""

log = logging.getLogger("outkeep.receiver")


@dataclass(frozen=True)
class Receiver:
    """What the endpoint works with."""

    inbox: Inbox
    spool: Spool | None
    """Where terminal deliveries go while Redis is away; None refuses them."""
    redis: Redis
    quarantine: Quarantine
    claims: ClaimCheck
    contexts: ContextKeys
    clock: Callable[[], datetime]
    tally: Tally
    # Of its own: should storage hang, large deliveries still find a thread.
    _quarantiners: ThreadPoolExecutor = field(
        init=False, repr=False, default_factory=partial(ThreadPoolExecutor, QUARANTINERS, "quarantine")
    )

    async def receive(self, request: Request, *, sender: Sender, kind: Kind) -> ASGIApp:
        """The answer to a delivery of `sender` about a prediction or a training."""
        try:
            async with sender.received(request) as delivery:
                outcome = await self._keep(request, delivery, kind)
        except (Rejected, Transient) as error:
            self.tally.add(REFUSED, error.code)
            return _refusal(error)
        except ClientDisconnect:
            self.tally.add(REFUSED, "disconnected")
            return Response(status_code=400)
        self.tally.add(RECEIVED, outcome)
        return _ANSWERS[outcome]

    async def _keep(self, request: Request, delivery: Authenticated, kind: Kind) -> str:
        try:
            prediction = await apart(len(delivery.body), partial(parse, delivery.body, kind))
        except Unusable as error:
            if delivery.source == "cog" and is_progress(delivery.body):
                return Accepted.PROGRESS
            await self._set_aside(request, delivery, kind, error)
            return QUARANTINED
        now = self.clock()
        query: Query = {}
        context = None
        if request.scope["query_string"]:
            query, context = split_query(request.query_params.multi_items(), self.contexts)
        receipt = Receipt(
            received_at=now,
            webhook_id=delivery.webhook_id,
            source=delivery.source,
            query=query,
            context=context,
            parent=parent(context),
        )
        outcome = await self._accept(make_arrival(prediction, delivery.body, receipt, now))
        if outcome == Accepted.FOREIGN:
            await self._set_aside(request, delivery, kind, foreign(prediction.id))
            outcome = QUARANTINED
        completed_at = believed(prediction.completed_at, now)
        if outcome in _TAKEN and prediction.is_terminal and completed_at is not None:
            self.tally.observe(DELAYED, max(0.0, (now - completed_at).total_seconds()))
        level = logging.INFO if outcome in _TAKEN else logging.DEBUG
        facts = {
            "kind": kind,
            "id": prediction.id,
            "status": prediction.status,
            "delivery": delivery.webhook_id,
        }
        log.log(level, "delivery %s", outcome, extra=facts)
        return outcome

    async def _accept(self, arrival: Arrival) -> str:
        try:
            if not self.claims.concerns(arrival):
                return await self.inbox.accept(arrival)
            checked = await self._check_in(arrival)
            outcome = await self.inbox.accept(checked)
            with suppress(TimeoutError):
                settling = asyncio.wrap_future(self.claims.begin_settling(arrival, checked, outcome))
                await asyncio.wait_for(settling, self.claims.patience)
            return outcome  # noqa: TRY300
        except Transient as error:
            if self.spool is None:
                raise
            if arrival.job is None:
                log.info("progress is dropped while Redis is away", extra={"id": arrival.prediction.id})
                raise Transient("progress_dropped", "progress is not kept while Redis is away") from None
            prediction = arrival.prediction
            await self.spool.keep(prediction.id, Spooled(prediction.kind, arrival.body, arrival.receipt))
            if error.code.startswith("storage"):
                facts = {"id": prediction.id, "code": error.code, "reason": error.message}
                log.warning("a large delivery waits in the spool until the storage takes it", extra=facts)
            return SPOOLED

    async def _check_in(self, arrival: Arrival) -> Arrival:
        """Bring a large body to the storage; raises `Transient`, within the patience of the claim check."""
        future = self.claims.begin(arrival)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.claims.patience)
        except TimeoutError:
            raise self.claims.too_slow() from None

    async def _set_aside(
        self, request: Request, delivery: Authenticated, kind: Kind, reason: Unusable
    ) -> None:
        aside = Aside(
            kind,
            delivery.body,
            reason,
            self.clock(),
            delivery.source,
            gathered(request.query_params.multi_items()),
            {k: v for k, v in request.headers.items() if k not in _CREDENTIALS},
        )
        await asyncio.get_running_loop().run_in_executor(self._quarantiners, self.quarantine.put, aside)


class _Taken:
    """The answer to a delivery that was taken: made once, since there are few."""

    def __init__(self, outcome: str) -> None:
        body = json.dumps({"outcome": outcome}, separators=(",", ":")).encode()
        headers = [
            (b"content-length", str(len(body)).encode()),
            (b"content-type", b"application/json"),
            (b"content-security-policy", POLICY.encode()),
        ]
        self._start = {"type": "http.response.start", "status": 202, "headers": headers}
        self._body = {"type": "http.response.body", "body": body}

    async def __call__(self, _: Scope, __: Receive, send: Send) -> None:
        """ASGI."""
        await send(self._start)
        await send(self._body)


_ANSWERS = {outcome: _Taken(outcome) for outcome in (*map(str, Accepted), SPOOLED, QUARANTINED)}


@dataclass(frozen=True)
class Hook:
    """The ASGI application of one route for webhooks; nothing stands between it and the server."""

    receiver: Receiver
    sender: Sender
    kind: Kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        request = Request(scope, receive)
        try:
            answer = await self.receiver.receive(request, sender=self.sender, kind=self.kind)
        except Exception as error:
            await _guarded(await internal_error(request, error))(scope, receive, send)
            raise  # the server logs it
        await _guarded(answer)(scope, receive, send)


def _guarded(answer: ASGIApp) -> ASGIApp:
    """With the policy that `Gate` sets for all else."""
    if isinstance(answer, Response):
        answer.headers["content-security-policy"] = POLICY
    return answer


def _refusal(error: Rejected | Transient) -> JSONResponse:
    content = {"error": error.code, "message": error.message}
    # The rest of a body that we do not want to read must not follow.
    headers = {"connection": "close"} if error.code in _UNREAD else {}
    if isinstance(error, Rejected):
        level = logging.DEBUG if error.status == HTTPStatus.TOO_MANY_REQUESTS else logging.INFO
        log.log(level, "delivery refused", extra={"code": error.code, "status": error.status})
        return JSONResponse(content, status_code=error.status, headers=headers)
    log.warning("delivery not acknowledged; it must be sent again", extra={"code": error.code})
    headers["retry-after"] = str(int(error.retry_after or RETRY_AFTER))
    return JSONResponse(content, status_code=503, headers=headers)


async def http_error(_: Request, error: Exception) -> Response:
    """What Starlette itself refuses (404, 405), in our form."""
    assert isinstance(error, HTTPException)
    content = {"error": error.detail.lower().replace(" ", "_"), "message": error.detail}
    return JSONResponse(content, status_code=error.status_code, headers=error.headers)


async def internal_error(_: Request, error: Exception) -> Response:
    """A fault of ours: asked for again, since a sender gives up on other answers. The server logs it."""
    content = {"error": "internal", "message": f"the receiver failed ({type(error).__name__}); send it again"}
    return JSONResponse(content, status_code=503, headers={"retry-after": str(RETRY_AFTER)})
