"""Which Redis a process uses, and the client that speaks to it."""

import os
from typing import TYPE_CHECKING

from app.core.errors import ConfigurationError
from app.disk import KEY_FILE, owner_problems
from app.settings import Settings
from app.valkey.server import Embedded, running_url

if TYPE_CHECKING:
    from redis import Redis

TIMEOUT = 1.0
"""Seconds that one call to Redis may take before its answer is taken for missing."""


def connect(url: str, *, timeout: float = TIMEOUT) -> "Redis":
    """A client that gives up after `timeout` seconds and does not try again; it connects when first used.

    A pipeline sent twice may count twice.
    """
    from redis import Redis  # heavy, and `up` needs no more than the address
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    redis = Redis.from_url(url)
    # What the URL itself asks for would win over arguments.
    redis.connection_pool.connection_kwargs.update(
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry_on_timeout=False,
        retry=Retry(NoBackoff(), 0),
    )
    return redis


def find_redis(settings: Settings) -> str:
    """The URL of Redis; raises `ConfigurationError` when none is set and none runs on the data."""
    url = settings.redis_url or running_url(settings.data)
    if url is None:
        try:
            (settings.data / KEY_FILE).exists()
        except PermissionError as error:  # one may run there, unseen by us
            problem = f"OUTKEEP_DATA: cannot look into {settings.data}: {error.strerror}"
            foreign = owner_problems("OUTKEEP_DATA", settings.data, os.geteuid())
            raise ConfigurationError(foreign or [problem]) from None
        problem = f"REDIS_URL: not set, and no embedded server answers on {settings.data}"
        raise ConfigurationError([f"{problem}; set it, or start `outkeep up`"])
    return url


def expect_redis(settings: Settings) -> str:
    """The URL of Redis for a child of `up`, whose embedded server may only come, or come back, later."""
    return settings.redis_url or Embedded(settings.data).url
