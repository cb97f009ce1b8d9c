"""Composition root of a worker process: what its jobs work with, and which jobs there are."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.accept.records import Records
from app.core.context import context_keys
from app.core.handlers import needs_token
from app.core.inputs import Uploads
from app.core.links import link_keys
from app.core.names import NOTIFY_JOB, NOTIFY_QUEUE, PERSIST_JOB, PERSIST_QUEUE
from app.core.shares import PART, Downstream, Shares, share_of
from app.deployment import Deployment
from app.maintain.handler_states import HandlerStates
from app.replicate.client import connected
from app.replicate.creation import CreationLimit, creating
from app.replicate.follow_ups import FollowUps
from app.replicate.guard import guarded_session
from app.replicate.places import Places
from app.storage.store import Storage
from app.telemetry.tally import FOLDER as COUNTS_FOLDER
from app.telemetry.tally import Tally
from app.valkey.client import TIMEOUT as REDIS_TIMEOUT
from workers import jobs
from workers.keep.collect import PARALLEL_FILES, Collector, Limits
from workers.keep.fetch import Fetcher, InputFetcher, OwnFiles
from workers.keep.inputs import Inputs
from workers.keep.output_file import Keeper
from workers.keep.persist import Dispatcher, Persist
from workers.keep.scratch import scratch
from workers.tell.attempt import TIMEOUT, Attempts, Post
from workers.tell.follow import Follow, HandingOver, Links, signed_links
from workers.tell.notify import Notify

Jobs = Mapping[str, Callable[..., Awaitable[Any]]]
"""Job name → coroutine function of the RQ job and its arguments: nothing else is ever run."""


@asynccontextmanager
async def persist_jobs(deployment: Deployment, redis: Redis) -> AsyncIterator[Jobs]:
    """The jobs of the queue `persist`."""
    settings = deployment.settings
    rules = settings.output_hosts
    places = Places("the downloads", Shares.of(settings.slots))
    with scratch(settings.temporary) as folder:
        async with (
            guarded_session(origins=rules.origins, proxy=_proxy(deployment)) as session,
            _fetching_inputs(deployment, folder, places) as inputs,
            _counting(redis, settings.data / COUNTS_FOLDER) as tally,
        ):
            fetcher = Fetcher(
                session,
                rules,
                folder,
                max_bytes=settings.max_file,
                disk_floor=settings.disk_floor,
                places=places,
                now=deployment.clock.time,
            )
            service = _persist(deployment, redis, fetcher, inputs, tally)
            yield {PERSIST_JOB: partial(jobs.persist, service)}


@asynccontextmanager
async def notify_jobs(
    deployment: Deployment, redis: Redis, *, patience: float = TIMEOUT
) -> AsyncIterator[Jobs]:
    """The jobs of the queue `notify`; handlers have `patience` seconds to answer."""
    settings = deployment.settings
    storage = Storage(settings.storage_url)
    handlers = {handler.name: handler for handler in deployment.handlers}
    share = share_of(settings.slots)
    links = signed_links(link_keys(deployment.secret_keys), settings.base_url, deployment.clock)
    async with (
        guarded_session(private=settings.notify_private, proxy=_proxy(deployment), statuses=True) as session,
        _counting(redis, settings.data / COUNTS_FOLDER) as tally,
        _following(deployment, redis, storage, links) as follow,
    ):
        post = Post(session, deployment.clock, patience)
        service = Notify(
            attempts=Attempts(redis, storage, handlers, links, post, follow, deployment.clock),
            storage=storage,
            states=HandlerStates(redis),
            downstreams={name: Downstream(share) for name in handlers},
            clock=deployment.clock,
            jitter=random.random,
            tally=tally,
        )
        yield {NOTIFY_JOB: partial(jobs.notify, service)}


@asynccontextmanager
async def _following(
    deployment: Deployment, redis: Redis, storage: Storage, links: Links
) -> AsyncIterator[Follow | None]:
    """What follow-up predictions are made with; None when no handler makes any."""
    settings, token = deployment.settings, deployment.settings.api_token
    if not needs_token(deployment.handlers) or token is None:
        yield None
        return
    with scratch(settings.temporary) as folder:
        async with (
            creating(settings.api_url, token.get_secret_value()) as creator,
            connected(settings.api_url, token.get_secret_value()) as api,
        ):
            yield Follow(
                creator=creator,
                api=api,
                follow_ups=FollowUps(redis),
                limit=CreationLimit(redis),
                records=Records(redis, ttl=settings.record_ttl),
                storage=storage,
                files=HandingOver(creator, storage, folder),
                links=links,
                keys=context_keys(deployment.secret_keys),
                base_url=settings.public_url,
                clock=deployment.clock,
            )


ASYNCHRONOUS = {PERSIST_QUEUE: persist_jobs, NOTIFY_QUEUE: notify_jobs}
"""Queues that wait on networks, with what opens their jobs."""


@asynccontextmanager
async def _fetching_inputs(
    deployment: Deployment, folder: Path, places: Places
) -> AsyncIterator[InputFetcher | None]:
    """What downloads inputs, over a session of its own that also reaches the API; None: they are not kept."""
    settings = deployment.settings
    if not settings.keep_inputs:
        yield None
        return
    rules, token = settings.output_hosts, settings.api_token
    uploads = Uploads.at(settings.api_url, token.get_secret_value()) if token else None
    origins = rules.origins | ({uploads.origin} if uploads else set())
    async with guarded_session(origins=origins, proxy=_proxy(deployment)) as session:
        fetcher = Fetcher(
            session,
            rules,
            folder,
            max_bytes=settings.max_file,
            disk_floor=settings.disk_floor,
            places=places,
            now=deployment.clock.time,
        )
        own = OwnFiles(
            Storage(settings.storage_url),
            settings.base_url,
            link_keys(deployment.secret_keys),
            folder,
            settings.disk_floor,
            deployment.clock,
        )
        yield InputFetcher(fetcher, settings.api_url, uploads, own)


def _persist(
    deployment: Deployment, redis: Redis, fetcher: Fetcher, inputs: InputFetcher | None, tally: Tally
) -> Persist:
    settings = deployment.settings
    clock = deployment.clock
    records = Records(redis, ttl=settings.record_ttl)
    storage = Storage(settings.storage_url)
    # What waits for storage outlives the process, unlike what is being downloaded.
    keeper = Keeper(storage, fetcher, settings.temporary)
    limits = Limits(settings.max_files, settings.disk_floor)
    # One prediction leaves places of a host to others, also where there are few.
    parallel = min(PARALLEL_FILES, max(1, settings.slots // PART**2))
    input_keeper = Keeper(storage, inputs, settings.temporary) if inputs else None
    return Persist(
        records=records,
        storage=storage,
        keeper=keeper,
        collector=Collector(
            records,
            keeper,
            settings.temporary,
            limits,
            clock,
            random.random,
            settings.output_hosts,
            tally,
            parallel,
        ),
        dispatcher=Dispatcher(redis, records, storage, deployment.handlers, clock),
        clock=clock,
        jitter=random.random,
        tally=tally,
        inputs=Inputs(
            records,
            input_keeper,
            settings.max_files,
            places=Places("the waits for inputs", Shares.of(settings.slots)),
        )
        if input_keeper
        else None,
    )


@asynccontextmanager
async def _counting(redis: Redis, folder: Path) -> AsyncIterator[Tally]:
    """Counts reach Redis through a client that gives up soon: the end of the process waits for it."""
    pool = redis.connection_pool
    hasty: dict[str, Any] = {
        "socket_timeout": REDIS_TIMEOUT,
        "socket_connect_timeout": REDIS_TIMEOUT,
        "retry": Retry(NoBackoff(), 0),
    }
    options = {**pool.connection_kwargs, **hasty}
    own = Redis(connection_pool=ConnectionPool(connection_class=pool.connection_class, **options))
    with closing(own), Tally().flushing(own, folder) as tally:
        yield tally


def _proxy(deployment: Deployment) -> str | None:
    proxy = deployment.settings.proxy
    return proxy.get_secret_value() if proxy else None
