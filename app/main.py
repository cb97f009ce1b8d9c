"""Composition root of the web process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from app.core.links import link_keys
from app.deployment import Deployment
from app.files import Files
from app.health import Health
from app.inbox import Inbox, connect
from app.receiver import Receiver, http_error
from app.records import Records
from app.storage import Storage

GRACE = 20
"""Seconds that requests in flight get after SIGTERM."""


def create_app(deployment: Deployment) -> Starlette:
    """The ASGI application; connects to Redis when it first needs to, so it starts while Redis is away."""
    settings = deployment.settings
    redis = connect(deployment.redis_url)
    storage = Storage(settings.storage_url)
    inbox = Inbox(redis, Records(redis, ttl=settings.record_ttl), _now)
    receiver = Receiver(
        inbox=inbox,
        redis=redis,
        storage=storage,
        keys=settings.webhook_keys,
        max_body=settings.max_body,
        clock=_now,
    )
    files = Files(storage, link_keys(deployment.secret_keys), settings.admin_token, _now)
    token = settings.admin_token.get_secret_value() if settings.admin_token else None
    health = Health(redis, storage, deployment.secret_keys[0], token)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await inbox.close()
        await asyncio.to_thread(redis.close)

    app = Starlette(
        routes=[
            Route("/webhooks/replicate", receiver.prediction, methods=["POST"]),
            Route("/webhooks/replicate/trainings", receiver.training, methods=["POST"]),
            Route("/files/{folder}/{id}/{name}", files.serve, methods=["GET"]),
            Route("/healthz", health.live, methods=["GET"]),
            Route("/readyz", health.ready, methods=["GET"]),
        ],
        exception_handlers={HTTPException: http_error},
        lifespan=lifespan,
    )
    # A redirect loses a webhook: Replicate follows none and takes it for delivered.
    app.router.redirect_slashes = False
    return app


def serve(deployment: Deployment) -> None:
    """Run the receiver until SIGTERM or SIGINT."""
    settings = deployment.settings
    uvicorn.run(
        create_app(deployment),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=True,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=75,
    )


def _now() -> datetime:
    return datetime.now(UTC)
