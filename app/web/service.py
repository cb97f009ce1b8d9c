"""Composition of what people and programs see: opened by `app.main` where an admin token is set."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from redis import Redis
from starlette.routing import BaseRoute, Route

from app.accept.records import Records
from app.core.links import link_keys
from app.deployment import Deployment
from app.health.doctor import diagnose
from app.maintain.albums import Albums
from app.maintain.removal import LocalCopies
from app.storage.store import Storage
from app.valkey.client import connect
from app.web.actions import Actions
from app.web.albums import AlbumPages
from app.web.api import Api
from app.web.catalog import Catalog
from app.web.dashboard import Dashboard
from app.web.downloads import Download
from app.web.feed import PATIENCE, Feed
from app.web.forms import Forms
from app.web.library import Library
from app.web.pulse import Pulse
from app.web.session import Sessions
from app.web.sign_in import SignIn
from app.web.signing import Signer
from app.web.stream import Stream
from app.web.thumbs import Thumbs

if TYPE_CHECKING:
    from app.web.outgoing import Outgoing

CATALOG = "catalog.db"
"""In the folder of the data."""


@dataclass(frozen=True)
class Service:
    """What is read, what follows the changes, and the routes."""

    library: Library
    actions: Actions
    feed: Feed
    stream: Stream
    pulse: Pulse
    sessions: Sessions
    thumbs: Thumbs
    routes: Sequence[BaseRoute]

    def end_streams(self) -> None:
        """Let every stream of events end now; called in the loop."""
        self.stream.close()
        self.pulse.close()

    def close(self) -> None:
        """End the threads."""
        self.thumbs.close()
        self.actions.close()
        self.feed.stop()
        self.library.close()


def open_service(deployment: Deployment, redis: Redis, records: Records, storage: Storage) -> Service:
    """Opens nothing yet but what it is given: the catalog is made by the feed, once that is started."""
    settings = deployment.settings
    catalog = Catalog(settings.data / CATALOG)
    feed = Feed(
        catalog,
        connect(deployment.redis_url, timeout=PATIENCE + 4.0),
        storage,
        deployment.handlers,
        ttl=settings.record_ttl,
        clock=deployment.clock,
    )
    library = Library(
        catalog=catalog,
        redis=redis,
        records=records,
        storage=storage,
        handlers=deployment.handlers,
        links=link_keys(deployment.secret_keys),
        base_url=settings.base_url,
        clock=deployment.clock,
        examine=partial(diagnose, os.environ, Path.cwd()),
        public_storage_url=settings.storage_public_url,
    )
    actions = Actions(
        redis=redis,
        records=records,
        storage=storage,
        catalog=catalog,
        handlers=deployment.handlers,
        local=LocalCopies(settings.temporary, settings.data / "spool", settings.data / "thumbs"),
        ttl=settings.record_ttl,
        clock=deployment.clock,
    )
    stream = Stream(redis)
    feed.listen(stream.publish)
    pulse = Pulse()
    feed.listen(pulse.publish)
    assert settings.admin_token is not None
    sessions = Sessions(settings.admin_token, deployment.secret_keys, redis, deployment.clock.time)
    notes = Signer(deployment.secret_keys, b"outkeep notes v1")
    dashboard = Dashboard(sessions, library, notes, runs_again=settings.api_token is not None)
    thumbs = Thumbs(storage, settings.data / "thumbs", sessions, settings.disk_floor)
    feed.listen(thumbs.follow)
    api = Api(
        library=library,
        actions=actions,
        albums=Albums(redis),
        stream=stream,
        outgoing=partial(_outgoing, deployment, redis, records, storage),
        redis=redis,
        require=sessions.require,
        secret_keys=deployment.secret_keys,
    )
    forms = Forms(dashboard, actions, api.outgoing, Download(library))
    routes = [
        api.mount(),
        *SignIn(sessions).routes(),
        *dashboard.routes(),
        *forms.routes(),
        Route("/changes", dashboard.guarded(pulse.answer), methods=["GET"]),
        *AlbumPages(dashboard, Albums(redis), deployment.secret_keys).routes(),
        Route("/thumbs/{folder}/{id}/{name}", thumbs.serve, methods=["GET"]),
    ]
    return Service(library, actions, feed, stream, pulse, sessions, thumbs, routes)


def _outgoing(deployment: Deployment, redis: Redis, records: Records, storage: Storage) -> "Outgoing":
    from app.web.outgoing import Outgoing  # noqa: PLC0415  it brings clients that a receiver does without

    return Outgoing(deployment.settings, redis, records, storage, deployment.secret_keys, deployment.clock)
