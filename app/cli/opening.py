"""What most commands open: Redis, the records in it, and the storage."""

from contextlib import closing, suppress

from redis import RedisError

from app.accept.records import Records
from app.clock import Clock
from app.core.errors import ConfigurationError
from app.settings import Settings
from app.storage.identity import require
from app.storage.store import Storage
from app.valkey.client import connect, find_redis

TIMEOUT = 5.0
"""Seconds that Redis may take to answer a command."""


def open_records(settings: Settings) -> Records:
    """The records of the deployment this environment describes."""
    url = find_redis(settings)
    return Records(connect(url, timeout=TIMEOUT), ttl=settings.record_ttl)


def open_storage(settings: Settings) -> tuple[Storage, Clock]:
    """The storage, for what needs no Redis, and the clock of the one that answers, else of this host.

    Raises `ConfigurationError` where one answers and has another storage.
    """
    storage, clock = Storage(settings.storage_url), Clock()
    try:
        redis = connect(find_redis(settings), timeout=TIMEOUT)
    except ConfigurationError:
        return storage, clock
    with closing(redis), suppress(RedisError):
        clock.ask(redis)
        require(redis, storage)
    return storage, clock
