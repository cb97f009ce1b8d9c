"""What was created here without a webhook, in Redis: when each is asked for next.

Each comes in with its record and goes with its end (`Records.accept`), or when it is removed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from redis import Redis

from app.core.names import ASKING_TURN, AWAITED_HERE, Kind, record_member, split_member
from app.core.reconciling import Awaited, Origin
from app.maintain.lease import leased


class CreatedHere:
    """Over one Redis connection. Times are in Unix seconds. Methods block; errors are redis-py's."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def next_at(self) -> float | None:
        """When the next one is to be asked for; None while none is awaited."""
        first = cast(list[tuple[bytes, float]], self._redis.zrange(AWAITED_HERE, 0, 0, withscores=True))
        return first[0][1] if first else None

    def due(self, now: float, most: int) -> list[Awaited]:
        """Those to be asked for by now, the one that waits longest first."""
        found = self._redis.zrange(AWAITED_HERE, "-inf", now, byscore=True, offset=0, num=most)
        return [Awaited(*split_member(member.decode()), Origin.HERE) for member in cast(list[bytes], found)]

    def put_off(self, kind: Kind, identity: str, until: float) -> None:
        """Ask for one at a later time, and never sooner for it; what is not awaited any more stays so."""
        self._redis.zadd(AWAITED_HERE, {record_member(kind, identity): until}, xx=True, gt=True)

    def forget(self, kind: Kind, identity: str) -> None:
        """Await one no longer."""
        self._redis.zrem(AWAITED_HERE, record_member(kind, identity))

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Whether it is ours to ask until the end of the block."""
        with leased(self._redis, ASKING_TURN) as ours:
            yield ours
