"""`/healthz`: the process lives. `/readyz`: a delivery sent now would be acknowledged."""

import asyncio
import re
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import cast

from redis import Redis
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app.accept.spool import Spool
from app.clock import Clock
from app.core import findings as rules
from app.core.bucket_faults import redis_fault
from app.core.errors import OutkeepError
from app.core.findings import OURS, Finding, Level
from app.core.names import KEY_FINGERPRINT
from app.core.secret import SecretStr
from app.health.checks import Recent, Subject, disk, shared, spooled
from app.health.presence import Presence, others
from app.receive.headers import carries
from app.receive.keyring import KeyRing
from app.receive.senders import Lateness
from app.storage.store import Storage

KEPT = 1.0
"""Seconds for which findings are answered again without another look."""

REMOTE_KEPT = 10.0
"""The same for a remote store, where each look is a write that somebody pays for."""

STORAGE_PATIENCE = 2.0
"""Seconds after which storage is said to hang; without it, deliveries are acknowledged all the same."""


_OF_A_PROXY = ("forwarded", "via", "x-real-ip", "x-forwarded-host", "x-forwarded-server")
_NAMED = re.compile(rf"(?:workers of|queue|handler) (?!(?:{'|'.join(OURS)})$).*")
"""Checks that name what the user has made: strangers do not see that."""


@dataclass
class Health:
    """The checks of one receiver."""

    redis: Redis
    storage: Storage
    here: Presence
    subject: Subject
    admin_token: SecretStr | None
    spool: Spool | None
    """Takes deliveries while Redis is away; None when that is switched off."""
    lateness: Lateness
    clock: Clock
    data: Path
    disk_floor: int | None
    ring: KeyRing | None
    """None: no delivery of Replicate is expected."""
    _recent: Recent[list[Finding]] = field(init=False, repr=False)
    _recent_storage: Recent[Finding] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._recent = Recent(self.findings, kept=KEPT)
        kept = KEPT if self.storage.folder is not None else REMOTE_KEPT
        self._recent_storage = Recent(self._storage, kept=kept)

    async def live(self, _: Request) -> Response:
        """`GET /healthz`."""
        return PlainTextResponse("ok\n")

    async def ready(self, request: Request) -> Response:
        """`GET /readyz`: a line per check; details only for who may see them."""
        try:
            storage = await asyncio.wait_for(self._recent_storage.get(), STORAGE_PATIENCE)
        except TimeoutError:
            storage = Finding(Level.WARN, "storage", f"no answer within {STORAGE_PATIENCE:.0f} s")
        findings = [*await self._recent.get(), storage]
        if self._may_see_details(request):
            lines = [f"{one.level} {one.check}{one.detail and ': ' + one.detail}\n" for one in findings]
        else:
            public = [_NAMED.sub("handlers", one.check) for one in findings]
            lines = [f"{one.level} {check}\n" for one, check in zip(findings, public, strict=True)]
        failed = any(finding.level is Level.FAIL for finding in findings)
        return PlainTextResponse("".join(lines), status_code=503 if failed else 200)

    def findings(self) -> list[Finding]:
        """Run every check but that of storage; blocks for about two seconds at most when Redis hangs.

        What does not keep a delivery from being acknowledged is no more than a warning.
        """
        now = self.clock()
        try:
            findings = self._with_redis()
        except BusyLoadingError:
            findings = [self._without_redis("loading its data")]
        except ResponseError as error:
            findings = [self._without_redis(f"takes no writes ({type(error).__name__})")]
        except RedisError as error:
            state = redis_fault(str(error)) or f"no answer ({type(error).__name__})"
            findings = [self._without_redis(state)]
        findings += [*spooled(self.spool, now), rules.warned(disk(self.data, self.disk_floor))]
        findings += self.ring.findings() if self.ring else []
        findings.append(rules.token(self.subject.reconciles is not None))
        own = rules.warned(rules.clock(self.clock.skew))
        findings += [own] if own.level is not Level.OK else []
        return [*findings, *self.lateness.findings(now.timestamp())]

    def _without_redis(self, state: str) -> Finding:
        if self.spool is None or self.spool.trouble() is not None:
            return Finding(Level.FAIL, "redis", f"{state}; deliveries are refused until it is well")
        return Finding(Level.WARN, "redis", f"{state}; deliveries wait in the spool until it is well")

    def _with_redis(self) -> list[Finding]:
        """Say which key signs here, which also proves that Redis takes writes; then look at Redis."""
        own = self.here.process
        known = cast(bytes | None, self.redis.set(KEY_FINGERPRINT, own.keys[0], nx=True, get=True))
        is_rotated = known is not None and known.decode() in own.keys[1:]
        if is_rotated and all(own.keys[0] in one.keys for one in others(self.redis, own)):
            self.redis.set(KEY_FINGERPRINT, own.keys[0])
        subject = replace(self.subject, own=own)
        refused = self.here.refused
        findings = [] if refused is None else [Finding(Level.FAIL, "storage id", refused)]
        return [*findings, *map(rules.warned, shared(self.redis, subject, self.clock()))]

    def _storage(self) -> Finding:
        try:
            self.storage.check_writable()
        except OutkeepError as error:
            return Finding(Level.WARN, "storage", error.message)
        return Finding(Level.OK, "storage", self.storage.url)

    def _may_see_details(self, request: Request) -> bool:
        if carries(request, self.admin_token):
            return True
        if any(name in request.headers for name in _OF_A_PROXY):
            return False  # who asks sits behind it, whatever address it says
        try:
            return request.client is not None and ip_address(request.client.host).is_loopback
        except ValueError:
            return False
