"""Whether we live, and whether a delivery sent now would be acknowledged."""

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import cast

from pydantic import SecretStr
from redis import Redis
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app.accept import queues
from app.accept.spool import Spool
from app.clock import Clock, clocks_off
from app.core import findings as rules
from app.core.bucket_faults import redis_fault
from app.core.errors import OutkeepError
from app.core.findings import Finding, Level, command
from app.core.fleet import compared
from app.core.names import KEY_FINGERPRINT, NOTIFY_QUEUE, PERSIST_QUEUE
from app.disk import floor_of
from app.health.checks import Recent, ages, default_user, durability, memory, scheduler, server
from app.health.presence import Presence, others
from app.maintain.handler_states import HandlerStates
from app.receive.headers import carries
from app.receive.keyring import KeyRing
from app.receive.senders import Lateness
from app.reconcile import memory as reconcile_memory
from app.storage.identity import Identity, lost
from app.storage.store import Storage

KEPT = 1.0
"""Seconds for which findings are told again, however many ask."""

REMOTE_KEPT = 10.0
"""The same for a remote store, where each look is a write that somebody pays for."""

STORAGE_PATIENCE = 2.0
"""Seconds after which storage is said to hang; without it, deliveries are acknowledged all the same."""


@dataclass
class Health:
    """The checks of one receiver."""

    redis: Redis
    storage: Storage
    here: Presence
    identity: Identity
    admin_token: SecretStr | None
    spool: Spool | None
    """Takes deliveries while Redis is away; None when that is switched off."""
    lateness: Lateness
    clock: Clock
    data: Path
    disk_floor: int | None
    api_token: SecretStr | None
    reconciles: str
    ring: KeyRing | None
    """None: no delivery of Replicate is expected."""
    users: Sequence[str] = ()
    """Queues that hold jobs of the user's."""
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
        findings = [*await self._recent.get(), await self._patient_storage()]
        detailed = self._may_see_details(request)
        lines = [f"{f.level} {f.check}{': ' + f.detail if detailed and f.detail else ''}\n" for f in findings]
        failed = any(finding.level is Level.FAIL for finding in findings)
        return PlainTextResponse("".join(lines), status_code=503 if failed else 200)

    def findings(self) -> list[Finding]:
        """Run every check but that of storage; blocks for about two seconds at most when Redis hangs."""
        now = self.clock()
        try:
            findings = [*self._fleet(), *durability(self.redis, severe=Level.WARN), *self._workers()]
            findings += map(rules.warned, server(self.redis))
            findings += map(rules.warned, default_user(self.redis))
            findings += map(rules.warned, lost(self.identity))
            findings += [*map(rules.warned, [scheduler(self.redis, self.users), *ages(self.redis, now)])]
            findings += [*switched_off(self.redis), *map(rules.warned, memory(self.redis))]
            findings += rules.clocks(clocks_off(self.redis))
            if self.api_token is not None:
                age = reconcile_memory.age(self.redis, now.timestamp())
                findings.append(rules.reconciled(self.reconciles, age))
        except BusyLoadingError:
            findings = [self._without_redis("loading its data")]
        except ResponseError as error:
            findings = [self._without_redis(f"takes no writes ({type(error).__name__})")]
        except RedisError as error:
            state = redis_fault(str(error)) or f"no answer ({type(error).__name__})"
            findings = [self._without_redis(state)]
        findings += [*spooled(self.spool, now), rules.warned(disk(self.data, self.disk_floor))]
        findings += self.ring.findings() if self.ring else []
        findings.append(rules.token(self.api_token is not None))
        own = rules.warned(rules.clock(self.clock.skew))
        findings += [own] if own.level is not Level.OK else []
        return [*findings, *self.lateness.findings(now.timestamp())]

    def _without_redis(self, state: str) -> Finding:
        if self.spool is None or self.spool.trouble() is not None:
            return Finding(Level.FAIL, "redis", f"{state}; deliveries are refused until it is well")
        return Finding(Level.WARN, "redis", f"{state}; deliveries wait in the spool until it is well")

    def _fleet(self) -> list[Finding]:
        """In what other processes differ from us. The first write also proves that Redis takes writes."""
        own = self.here.process
        known = cast(bytes | None, self.redis.set(KEY_FINGERPRINT, own.keys[0], nx=True, get=True))
        living = others(self.redis, own)
        is_rotated = known is not None and known.decode() in own.keys[1:]
        if is_rotated and all(own.keys[0] in one.keys for one in living):
            self.redis.set(KEY_FINGERPRINT, own.keys[0])
        if self.here.refused is not None:
            return [Finding(Level.FAIL, "storage id", self.here.refused)]
        return [*map(rules.warned, compared(own, living, last_key=known.decode() if known else None))]

    def _workers(self) -> list[Finding]:
        findings = []
        for name in (PERSIST_QUEUE, NOTIFY_QUEUE, *self.users):
            count = queues.worker_count(name, self.redis)
            level = Level.OK if count else Level.WARN
            detail = f"{count} running" if count else f"none runs; start `{command(name)}`"
            if name in self.users:  # what it is called is nobody's business
                findings.append(Finding(level, "workers of jobs", f"{name}: {detail}"))
            else:
                findings.append(Finding(level, f"workers of {name}", detail))
        return findings

    async def _patient_storage(self) -> Finding:
        try:
            return await asyncio.wait_for(self._recent_storage.get(), STORAGE_PATIENCE)
        except TimeoutError:
            return Finding(Level.WARN, "storage", f"no answer within {STORAGE_PATIENCE:.0f} s")

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


_OF_A_PROXY = ("forwarded", "via", "x-real-ip", "x-forwarded-host", "x-forwarded-server")


def disk(folder: Path, floor: int | None) -> Finding:
    """Whether there is room on the disk of a folder, or of where it will be; `floor` in bytes."""
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return rules.disk(str(place), shutil.disk_usage(place).free, floor_of(place, floor))


def spooled(spool: Spool | None, now: datetime) -> list[Finding]:
    """Whether it could take a delivery, and what waits there."""
    if spool is None:
        return []
    trouble = spool.trouble()
    if trouble is not None:
        return [Finding(Level.WARN, "spool", trouble)]
    try:
        waiting, damaged = spool.waiting(), spool.damaged()
    except OSError as error:
        return [Finding(Level.WARN, "spool", f"cannot read {spool.folder}: {error.strerror}")]
    findings = []
    if damaged:
        detail = f"{damaged} deliveries are damaged; look at *.damaged in {spool.folder}"
        findings.append(Finding(Level.WARN, "spool", detail))
    if waiting:
        age = (now - waiting[0].received_at).total_seconds()
        whom = "for Redis, or, if large, for the storage"
        detail = f"{len(waiting)} deliveries wait {whom}; the oldest for {age:.0f} s"
        findings.append(Finding(Level.WARN, "spool", detail))
    return findings or [Finding(Level.OK, "spool", "empty")]


def switched_off(redis: Redis) -> list[Finding]:
    """The handlers that are told nothing any more; their names are for the details only."""
    return [
        Finding(
            Level.WARN,
            "handlers",
            f"{name} answered 410 at {since} and is told nothing until `outkeep handlers enable {name}`",
        )
        for name, since in sorted(HandlerStates(redis).switched_off().items())
    ]
