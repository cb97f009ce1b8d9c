"""Composition root of the web process."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, cast

import uvicorn
from redis import Redis
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from app.accept.claim_check import ClaimCheck
from app.accept.inbox import Inbox
from app.accept.quarantine import Quarantine
from app.accept.records import Records
from app.accept.spool import TIMEOUT as DRAIN_TIMEOUT
from app.accept.spool import Drainer, Spool
from app.clock import Clock, lend_to_rq
from app.core.addresses import Proxies
from app.core.context import context_keys, webhook_path
from app.core.errors import ConfigurationError
from app.core.fleet import RECEIVER
from app.core.handlers import job_queues
from app.core.links import link_keys
from app.core.names import COG_PATH, Kind
from app.deployment import Deployment
from app.health import presence
from app.health.checks import Subject
from app.health.metrics import Metrics
from app.health.presence import Presence
from app.health.readiness import Health
from app.receive.bodies import Bodies
from app.receive.endpoint import Hook, Receiver, http_error, internal_error
from app.receive.files import Files
from app.receive.headers import ON_EVERY_ANSWER, Gate
from app.receive.keyring import KeyRing, ring_of
from app.receive.limits import Limits
from app.receive.listening import listen
from app.receive.protocol import BoundedProtocol, Seats
from app.receive.rate_limit import Floods
from app.receive.senders import Cog, Lateness, Replicate, Sender
from app.storage.identity import Identity
from app.storage.store import Storage
from app.telemetry.interrupts import Ending
from app.telemetry.resources import give_back_large_blocks, look_through_less, open_more_files
from app.telemetry.tally import FOLDER as COUNTS_FOLDER
from app.telemetry.tally import Tally
from app.valkey.client import connect

if TYPE_CHECKING:
    from app.web.service import Service

CLAIM_PATIENCE = 2.0
"""Seconds that a sender waits for the storage to take a large body, before the spool takes it."""

DRAIN_PATIENCE = 10.0
"""The same for what waits in the spool: only other large ones, and our own end, wait behind it."""

LIMITS = Limits()
GRACE = LIMITS.grace_seconds

log = logging.getLogger("outkeep.receiver")


def create_app(deployment: Deployment, limits: Limits = LIMITS) -> Starlette:
    """The ASGI application; connects to Redis when it first needs to, so it starts while Redis is away."""
    settings = deployment.settings
    redis = connect(deployment.redis_url)
    storage = Storage(settings.storage_url)
    tally = Tally()
    records = Records(redis, ttl=settings.record_ttl)
    inbox = Inbox(redis, records, deployment.clock)
    folder = Spool(settings.data / "spool", disk_floor=settings.disk_floor)
    spool = folder if settings.spool == "on" else None
    lateness = Lateness()
    ring = ring_of(settings, again=limits.secret_seconds)
    floor = settings.disk_floor
    claims = ClaimCheck(storage, records, patience=CLAIM_PATIENCE, disk_floor=floor, clock=deployment.clock)
    quarantine = Quarantine(storage, disk_floor=floor, clock=deployment.clock)
    receiver = Receiver(
        inbox=inbox,
        spool=spool,
        redis=redis,
        quarantine=quarantine,
        claims=claims,
        contexts=context_keys(deployment.secret_keys),
        clock=deployment.clock,
        tally=tally,
    )
    files = Files(
        storage=storage,
        public_url=settings.storage_public_url,
        base_url=settings.base_url,
        keys=link_keys(deployment.secret_keys),
        admin_token=settings.admin_token,
        clock=deployment.clock,
    )
    identity = Identity(redis, storage)
    here = Presence(redis, presence.process_of(deployment, RECEIVER), identity, clock=deployment.clock)
    health = _health(deployment, redis, storage, here, identity, spool=spool, lateness=lateness, ring=ring)
    metrics = Metrics(redis, tally, deployment.clock, folder, here, job_queues(deployment.handlers))
    patient = connect(deployment.redis_url, timeout=DRAIN_TIMEOUT)
    patient_records = Records(patient, ttl=settings.record_ttl)
    # What waits is fed back although nothing more is spooled, should it have been switched off.
    waiting = ClaimCheck(
        storage, patient_records, patience=DRAIN_PATIENCE, disk_floor=floor, clock=deployment.clock
    )
    drainer = Drainer(folder, patient, patient_records, waiting, deployment.clock, quarantine=quarantine)

    web = _web(deployment, patient, patient_records, storage)
    closes = (
        *([web.close] if web else ()),
        drainer.stop,
        waiting.close,
        claims.close,
        folder.close,
        patient.close,
        redis.close,
    )
    app = Starlette(
        routes=[
            *_webhooks(deployment, limits, receiver, lateness, ring),
            *_routes(files, health, metrics),
            *(web.routes if web else ()),
        ],
        exception_handlers={HTTPException: http_error, Exception: internal_error},
        lifespan=_lifespan(
            inbox,
            here,
            ring=ring,
            counting=partial(tally.flushing, redis, settings.data / COUNTS_FOLDER),
            clock=deployment.clock,
            redis=redis,
            starts=(drainer.start, *([web.feed.start] if web else ())),
            closes=closes,
        ),
    )
    # A redirect loses a webhook: Replicate follows none and takes it for delivered.
    app.router.redirect_slashes = False
    app.state.before_shutdown = web.end_streams if web else None
    return app


def _lifespan(
    inbox: Inbox,
    here: Presence,
    *,
    ring: KeyRing | None,
    counting: Callable[[], AbstractContextManager[Tally]],
    clock: Clock,
    redis: Redis,
    starts: Sequence[Callable[[], None]],
    closes: Sequence[Callable[[], None]],
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """What begins with the application and ends with it; `closes` are carried out last, in their order."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        filling = asyncio.create_task(ring.fill()) if ring else None
        with counting(), clock.following(redis), here.kept():
            for start in starts:
                start()
            yield
            await inbox.close()
        if filling:
            filling.cancel()
        for close in closes:
            await asyncio.to_thread(close)

    return lifespan


def _webhooks(
    deployment: Deployment, limits: Limits, receiver: Receiver, lateness: Lateness, ring: KeyRing | None
) -> list[Route]:
    settings, clock = deployment.settings, deployment.clock
    proxies = Proxies(settings.forwarded_allow_ips)
    bodies = Bodies(limits, max_body=settings.max_body, folder=settings.temporary, proxies=proxies)
    floods = Floods()
    senders: list[tuple[str, Sender, Kind]] = []
    if ring is not None:
        replicate = Replicate(ring, bodies, floods, lateness, clock)
        senders += [(webhook_path(kind), replicate, kind) for kind in Kind]
    if settings.cog_token is not None:
        senders.append((COG_PATH, Cog(settings.cog_token, bodies, floods, clock), Kind.PREDICTION))
    return [Route(path, Hook(receiver, sender, kind), methods=["POST"]) for path, sender, kind in senders]


def _health(
    deployment: Deployment,
    redis: Redis,
    storage: Storage,
    here: Presence,
    identity: Identity,
    *,
    spool: Spool | None,
    lateness: Lateness,
    ring: KeyRing | None,
) -> Health:
    settings = deployment.settings
    return Health(
        redis=redis,
        storage=storage,
        here=here,
        subject=Subject(
            own=here.process,
            identity=identity,
            users=job_queues(deployment.handlers),
            reconciles=None if settings.api_token is None else settings.reconciles,
        ),
        admin_token=settings.admin_token,
        spool=spool,
        lateness=lateness,
        clock=deployment.clock,
        data=settings.data,
        disk_floor=settings.disk_floor,
        ring=ring,
    )


def _routes(files: Files, health: Health, metrics: Metrics) -> list[Route]:
    return [
        Route("/files/{folder}/{id}/{name}", files.serve, methods=["GET", "OPTIONS"]),
        Route("/healthz", health.live, methods=["GET"]),
        Route("/readyz", health.ready, methods=["GET"]),
        Route("/metrics", metrics.serve, methods=["GET"]),
    ]


def serve(deployment: Deployment) -> None:
    """Run the receiver until SIGTERM or SIGINT, then exit with 0; raises `Permanent` when the port is taken.

    Raises `ConfigurationError` when Redis belongs to another storage.

    Main thread only. What was acknowledged is durable already; requests in flight get some seconds more.
    """
    give_back_large_blocks()
    lend_to_rq(deployment.clock)
    files = open_more_files()
    limits = LIMITS.within(files)
    if limits.connections < LIMITS.connections:
        log.warning(
            "this process may open %d files only, and so takes %d connections at a time; "
            "raise the hard limit (`ulimit -Hn`)",
            files,
            limits.connections,
        )
    # uvicorn sends itself the signal again once it has stopped, which must not look like a crash.
    ending = Ending()
    _, *problems = presence.compare(deployment)
    if problems:
        raise ConfigurationError(problems)
    with listen(deployment.settings.host, deployment.settings.port) as listener:
        host, port = listener.getsockname()[:2]
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}/webhooks/replicate"
        ending.check()
        log.info("receiving on %s", where, extra={"public_url": deployment.settings.public_url})
        running = server(deployment, limits)
        look_through_less()
        running.run(sockets=[listener])


def server(deployment: Deployment, limits: Limits = LIMITS) -> uvicorn.Server:
    """The web server, ready to run on a socket."""
    settings = deployment.settings
    app = create_app(deployment, limits)
    seats = Seats(limits, Proxies(settings.forwarded_allow_ips))
    hooks = {
        route.path: route.app
        for route in app.routes
        if isinstance(route, Route) and isinstance(route.app, Hook)
    }
    return _Server(
        app.state.before_shutdown,
        uvicorn.Config(
            Gate(app, hooks=hooks, allowed=settings.allowed_hosts, admin_token=settings.admin_token),
            # Of the right shape, if not of the type: uvicorn only calls it to make one for each connection.
            http=cast(type[asyncio.Protocol], partial(BoundedProtocol, limits=limits, seats=seats)),
            backlog=limits.backlog,
            headers=ON_EVERY_ANSWER,
            log_config=None,
            # What it says of its own start and stop, we say in a line.
            log_level="error" if settings.log_level == "error" else "warning",
            access_log=False,
            server_header=False,
            ws="none",
            proxy_headers=True,
            forwarded_allow_ips=settings.forwarded_allow_ips,
            timeout_graceful_shutdown=ceil(limits.grace_seconds),
            timeout_keep_alive=ceil(limits.keep_alive_seconds),
        ),
    )


def _web(deployment: Deployment, redis: Redis, records: Records, storage: Storage) -> "Service | None":
    """Pages and API; nothing, and nothing of it imported, without an admin token."""
    if deployment.settings.admin_token is None:
        return None
    from app.web.service import open_service  # noqa: PLC0415

    return open_service(deployment, redis, records, storage)


class _Server(uvicorn.Server):
    """Ends event streams when it is told to end itself: it waits for all answers to be over."""

    def __init__(self, before_shutdown: Callable[[], None] | None, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._before_shutdown = before_shutdown

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._before_shutdown is not None:
            self._before_shutdown()
        await super().shutdown(sockets)
