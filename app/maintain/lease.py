"""A lease: a lock in Redis that a living process renews, and that a killed one loses soon."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from redis import Redis
from redis.exceptions import LockError, RedisError

SECONDS = 20.0
"""Seconds after which the lease of a killed process falls to another one."""


@contextmanager
def leased(redis: Redis, key: str) -> Iterator[bool]:
    """Whether the lease is ours; a thread renews it until the end of the block, which gives it back."""
    lock = redis.lock(key, timeout=SECONDS, thread_local=False)
    if not lock.acquire(blocking=False):
        yield False
        return
    ended = Event()

    def renew() -> None:
        while not ended.wait(SECONDS / 4):
            with suppress(LockError, RedisError):  # should two processes hold it, both do the same work
                lock.reacquire()

    renewing = Thread(target=renew, name="lease", daemon=True)
    renewing.start()
    try:
        yield True
    finally:
        ended.set()
        renewing.join()
        with suppress(LockError, RedisError):  # it expires
            lock.release()
