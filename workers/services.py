"""Composition root of a worker process: what its jobs work with, and which jobs there are."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import ClientSession
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.accept.group_commit import GroupCommit
from app.accept.records import LiveRecords, Records
from app.core.context import context_keys
from app.core.handlers import needs_token
from app.core.inputs import Uploads
from app.core.links import link_keys
from app.core.names import NOTIFY_JOB, NOTIFY_QUEUE, PERSIST_JOB, PERSIST_QUEUE
from app.core.shares import PART, Downstream, Shares, share_of
from app.deployment import Deployment
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
from workers.keep.download import Memory
from workers.keep.fetch import Fetcher
from workers.keep.inputs import InputFetcher, Inputs, OwnFiles
from workers.keep.output_file import Keeper
from workers.keep.persist import Persist
from workers.keep.scratch import scratch
from workers.tell.follow import Follow, HandingOver, Links, signed_links
from workers.tell.notify import TIMEOUT, Notify, Post

Jobs = Mapping[str, Callable[..., Awaitable[Any]]]
"""Job name → coroutine function of the RQ job and its arguments: nothing else is ever run."""


@asynccontextmanager
async def persist_jobs(deployment: Deployment, redis: Redis) -> AsyncIterator[Jobs]:
    """The jobs of the queue `persist`."""
    settings = deployment.settings
    rules = settings.output_hosts
    places, memory = Places("the downloads", Shares.of(settings.slots)), Memory()
    with scratch(settings.temporary) as folder:
        async with (
            guarded_session(origins=rules.origins, proxy=_proxy(deployment)) as session,
            _fetching_inputs(deployment, folder, memory, places) as inputs,
            _counting(redis, settings.data / COUNTS_FOLDER) as tally,
            _committing(redis) as commit,
        ):
            storage = Storage(settings.storage_url)
            records = LiveRecords(commit, Records(redis, ttl=settings.record_ttl))
            # What waits for storage outlives the process, unlike what is being downloaded.
            keeper = Keeper(
                storage, _fetcher(deployment, session, folder, memory, places), settings.temporary
            )
            # One prediction leaves places of a host to others, also where there are few.
            parallel = min(PARALLEL_FILES, max(1, settings.slots // PART**2))
            collector = Collector(
                records,
                keeper,
                settings.temporary,
                Limits(settings.max_files, settings.disk_floor),
                deployment.clock,
                random.random,
                rules,
                tally,
                parallel,
            )
            waits = Places("the waits for inputs", Shares.of(settings.slots))
            service = Persist(
                redis=redis,
                records=records,
                storage=storage,
                keeper=keeper,
                collector=collector,
                handlers=deployment.handlers,
                clock=deployment.clock,
                jitter=random.random,
                tally=tally,
                inputs=Inputs(
                    records, Keeper(storage, inputs, settings.temporary), settings.max_files, places=waits
                )
                if inputs
                else None,
            )
            yield {PERSIST_JOB: partial(jobs.persist, service)}


@asynccontextmanager
async def _committing(redis: Redis) -> AsyncIterator[GroupCommit]:
    commit = GroupCommit(redis)
    try:
        yield commit
    finally:
        await commit.close()


def _fetcher(
    deployment: Deployment, session: ClientSession, folder: Path, memory: Memory, places: Places
) -> Fetcher:
    settings = deployment.settings
    return Fetcher(
        session,
        settings.output_hosts,
        folder,
        max_bytes=settings.max_file,
        disk_floor=settings.disk_floor,
        memory=memory,
        places=places,
        now=deployment.clock.time,
    )


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
        _committing(redis) as commit,
    ):
        service = Notify(
            redis=redis,
            commit=commit,
            storage=storage,
            handlers=handlers,
            links=links,
            post=Post(session, deployment.clock, patience),
            follow=follow,
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
    deployment: Deployment, folder: Path, memory: Memory, places: Places
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
        fetcher = _fetcher(deployment, session, folder, memory, places)
        own = OwnFiles(
            Storage(settings.storage_url),
            settings.base_url,
            link_keys(deployment.secret_keys),
            folder,
            settings.disk_floor,
            deployment.clock,
            memory,
        )
        yield InputFetcher(fetcher, settings.api_url, uploads, own)


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
