"""Whose turn it is: a lock in Redis that a living process renews, and that a killed one loses soon."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from redis import Redis
from redis.exceptions import LockError, RedisError

TURN = 20.0
"""Seconds after which the turn of a killed process goes to another one."""


@contextmanager
def turn(redis: Redis, key: str) -> Iterator[bool]:
    """Whether it is ours until the end of the block; it is given back then."""
    lock = redis.lock(key, timeout=TURN, thread_local=False)
    if not lock.acquire(blocking=False):
        yield False
        return
    ended = Event()

    def renew() -> None:
        while not ended.wait(TURN / 4):
            try:
                lock.reacquire()
            except (LockError, RedisError):
                continue  # two at once ask twice, and that is all

    renewing = Thread(target=renew, name="turn", daemon=True)
    renewing.start()
    try:
        yield True
    finally:
        ended.set()
        renewing.join()
        with suppress(LockError, RedisError):  # it expires
            lock.release()
