"""What must be there before a prediction is created and paid for."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import click
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

from app import deployment
from app.accept import queues
from app.accept.claim_check import ClaimCheck
from app.accept.inbox import connect
from app.accept.records import Records
from app.cli.look import TIMEOUT
from app.clock import Clock, clock_of
from app.core.certificates import redis_fault
from app.core.context import context_keys, seal, webhook_url
from app.core.errors import ConfigurationError, Permanent
from app.core.names import PERSIST_QUEUE, Kind
from app.replicate.following import Follower
from app.settings import Settings
from app.storage.identity import require
from app.storage.store import Storage

STORAGE_PATIENCE = 60.0
"""Seconds that the storage may take for a large body."""


@dataclass(frozen=True)
class Ready:
    """All of it."""

    settings: Settings
    token: str
    redis: Redis
    clock: Clock
    context: dict[str, str]
    webhook: str | None

    @property
    def storage(self) -> Storage:
        """Where it will be kept."""
        return Storage(self.settings.storage_url)

    def follower(self, warn: Callable[[str], None]) -> Follower:
        """What follows the prediction that is about to be created."""
        records, floor = Records(self.redis, ttl=self.settings.record_ttl), self.settings.disk_floor
        return Follower(
            redis=self.redis,
            records=records,
            storage=self.storage,
            claims=ClaimCheck(
                self.storage, records, patience=STORAGE_PATIENCE, disk_floor=floor, clock=self.clock
            ),
            clock=self.clock,
            context=self.context or None,
            awaits_webhook=self.webhook is not None,
            warn=warn,
        )


def prepare(context: dict[str, str]) -> Ready:
    """Raises `ConfigurationError` for whatever is missing, since creating comes after this."""
    settings, handlers = deployment.prepare(os.environ)
    if settings.api_token is None:
        raise ConfigurationError(["REPLICATE_API_TOKEN: not set, and nothing can be run without it"])
    found = deployment.connect(settings, handlers)
    redis = connect(found.redis_url, timeout=TIMEOUT)
    _require_workers(redis, Storage(settings.storage_url))
    keys = context_keys(found.secret_keys)
    try:
        seal(context, keys)
    except Permanent as error:
        raise click.BadParameter(error.message, param_hint="--context") from None
    webhook = None
    if settings.public_url is not None:
        webhook = webhook_url(settings.public_url, Kind.PREDICTION, context or None, keys)
    return Ready(settings, settings.api_token.get_secret_value(), redis, clock_of(redis), context, webhook)


def _require_workers(redis: Redis, storage: Storage) -> None:
    try:
        require(redis, storage)
        count = queues.worker_count(PERSIST_QUEUE, redis)
    except AuthenticationError:
        raise
    except RedisError as error:
        wrong = redis_fault(str(error))
        problem = f"Redis: {wrong}" if wrong else f"Redis does not answer ({type(error).__name__})"
        problem += ", so nothing could be kept"
        raise ConfigurationError([f"{problem}; start `outkeep up`"]) from None
    if not count:
        problem = "no worker keeps outputs here, so nothing would be kept"
        raise ConfigurationError([f"{problem}; start `outkeep up`, or `outkeep work persist`"])
