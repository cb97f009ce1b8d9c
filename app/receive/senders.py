"""Who may send: Replicate with a signature, Cog with a token; and how far the clock of a sender is off."""

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Protocol

from starlette.requests import Request

from app.core.errors import Rejected
from app.core.findings import Finding, out_of_time
from app.core.manifest import Source
from app.core.secret import SecretStr
from app.core.signature import MISMATCH, OUT_OF_TIME, Delivery, VerifyingKey, verify
from app.receive.bodies import TOO_LARGE, Bodies, apart
from app.receive.headers import carries
from app.receive.keyring import KeyRing
from app.receive.rate_limit import Floods

WINDOW = 600.0
"""Seconds for which a refusal is remembered."""

MOST = 1000


class Lateness:
    """What one receiver refused for its age lately; times are Unix seconds."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=MOST)

    def note(self, now: float) -> None:
        """A good signature was refused for its age."""
        self._times.append(now)

    def findings(self, now: float) -> list[Finding]:
        """A warning while such refusals are recent."""
        recent = sum(now - WINDOW <= time <= now for time in self._times)
        return [out_of_time(recent, WINDOW)] if recent else []


BAD_TOKEN = "bad_token"  # noqa: S105
TOO_MANY_TOKENS = "too_many_tokens"

_BAD_SIGNATURES = frozenset({MISMATCH, "signature_malformed"})

log = logging.getLogger("outkeep.receiver")


@dataclass(frozen=True)
class Authenticated:
    """A body from a sender that has proven itself. Only the senders below make one."""

    body: bytes = field(repr=False)
    source: Source
    webhook_id: str | None
    """None where the sender numbers nothing."""


class Sender(Protocol):
    """One who sends webhooks."""

    def received(self, request: Request) -> AbstractAsyncContextManager[Authenticated]:
        """The body of a request that is genuine, for the length of the block.

        Raises what `Bodies.received` does, and `Rejected` for a request that is not genuine.
        """
        ...


@dataclass(frozen=True)
class Replicate:
    """Signs the whole body: it is read first, and then verified."""

    ring: KeyRing
    bodies: Bodies
    floods: Floods
    lateness: Lateness
    clock: Callable[[], datetime]

    @asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[Authenticated]:
        """The body of a signed delivery; see `Sender`. Raises `Transient` while there is no key."""
        self.ring.require()  # without one, why read the body
        async with self.bodies.received(request) as body:
            delivery = await self._verify(request, body)
            yield Authenticated(delivery.body, "webhook", delivery.webhook_id)

    async def _verify(self, request: Request, body: bytes) -> Delivery:
        now = self.clock().timestamp()
        try:
            return await self._verify_with(self.ring.require(), request, body, now)
        except Rejected as error:
            if error.code == OUT_OF_TIME:
                self.lateness.note(now)
            if error.code in _BAD_SIGNATURES:
                _count(self.floods, request, now, "too_many_refused")
            raise

    async def _verify_with(
        self, keys: tuple[VerifyingKey, ...], request: Request, body: bytes, now: float
    ) -> Delivery:
        try:
            return await apart(len(body), partial(verify, request.headers.raw, body, keys, now=now))
        except Rejected as error:
            if error.code != MISMATCH or not await self.ring.renewed(keys):
                raise
        return await apart(len(body), partial(verify, request.headers.raw, body, self.ring.keys, now=now))


@dataclass(frozen=True)
class Cog:
    """Shows a token and signs nothing: whoever has no token is refused before its body is read."""

    token: SecretStr = field(repr=False)
    bodies: Bodies
    floods: Floods
    clock: Callable[[], datetime]

    @asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[Authenticated]:
        """The body of a request with the right token; see `Sender`."""
        if not carries(request, self.token):
            _count(self.floods, request, self.clock().timestamp(), TOO_MANY_TOKENS)
            raise Rejected(BAD_TOKEN, "the Authorization header does not hold the token", status=401)
        try:
            async with self.bodies.received(request, proven=True) as body:
                yield Authenticated(body, "cog", webhook_id=None)
        except Rejected as error:
            if error.code == TOO_LARGE:
                # It may not even read our answer, since it is still sending.
                log.error(  # noqa: TRY400
                    "an event of Cog is larger than OUTKEEP_MAX_BODY: it is lost, Cog will give up"
                )
            raise


def _count(floods: Floods, request: Request, now: float, code: str) -> None:
    """Note a refusal; beyond the limit of its address raises `Rejected` with `code` and status 429."""
    address = request.client.host if request.client else ""
    if floods.count(address, now):
        message = "too many refusals for this address; what is genuine is still accepted"
        raise Rejected(code, message, status=429) from None
