"""The watchlist: predictions that are asked for by id, scored by when each is due (Unix seconds).

What was created here without a webhook stands in a list of its own: it is polled whatever reconciliation
is set to. All else waits for a webhook first, and is due once it has been silent for long. An entry comes
with a record and goes with its end (`Records.accept`), or when the prediction is removed. Entries of the
first list that 0.1 wrote bear the time when they were last heard of, so they are asked for a little early.
"""

from collections.abc import Sequence
from typing import cast

from redis import Redis

from app.core.names import AWAITED, AWAITED_HERE, Kind, awaited_member, record_member, split_awaited
from app.core.reconciling import Origin, Watched


class Watchlist:
    """Over one Redis connection. Methods block; errors are redis-py's."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def add(self, watched: Sequence[Watched], due_at: float) -> None:
        """Watch what was not created here."""
        if watched:
            self._redis.zadd(AWAITED, {_entry(one)[1]: due_at for one in watched})

    def put_off(self, kind: Kind, prediction_id: str, until: float) -> None:
        """Ask for something created here later, never sooner; what is not watched any more stays so."""
        self._redis.zadd(AWAITED_HERE, {record_member(kind, prediction_id): until}, xx=True, gt=True)

    def forget(self, one: Watched) -> None:
        """Watch one no longer."""
        self._redis.zrem(*_entry(one))

    def due(self, now: float, most: int) -> list[Watched]:
        """What was not created here and is due, the one that waits longest first."""
        found = (split_awaited(member) for member in self._due(AWAITED, now, most))
        return [Watched(kind, one, Origin.WEB if web else Origin.ELSEWHERE) for kind, one, web in found]

    def due_here(self, now: float, most: int) -> list[Watched]:
        """The same of what was created here."""
        found = (split_awaited(member) for member in self._due(AWAITED_HERE, now, most))
        return [Watched(kind, one, Origin.HERE) for kind, one, _ in found]

    def next_here(self) -> float | None:
        """When the next one that was created here is due; None while there is none."""
        first = cast(list[tuple[bytes, float]], self._redis.zrange(AWAITED_HERE, 0, 0, withscores=True))
        return first[0][1] if first else None

    def _due(self, key: str, now: float, most: int) -> list[str]:
        found = self._redis.zrange(key, "-inf", now, byscore=True, offset=0, num=most)
        return [member.decode() for member in cast(list[bytes], found)]


def _entry(one: Watched) -> tuple[str, str]:
    """The list of one, and how that names it."""
    key = AWAITED_HERE if one.origin is Origin.HERE else AWAITED
    return key, awaited_member(one.kind, one.id, web=one.origin is Origin.WEB)
