"""What reconciliation keeps in Redis between two passes, and when Outkeep first ran (in storage, too).

Methods block; errors are redis-py's, of `first_start` those of storage too.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

from redis import Redis

from app.core.errors import StorageFailure
from app.core.lifecycle import State
from app.core.names import (
    FIRST_START,
    PASSED_OVER,
    RECONCILE_MARKS,
    RECONCILED,
    Kind,
    record_key,
    record_member,
    removed_key,
)
from app.storage.identity import Identity
from app.storage.store import Storage

FORGOTTEN_AFTER = 8 * 86400.0
"""Seconds for which a prediction that was skipped for good is remembered: longer than a pass looks back."""


class Memory:
    """Over one Redis connection; several processes may share what is remembered."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def note_start(self, now: datetime) -> None:
        """Remember that Outkeep ran at `now`, unless it did before."""
        self._redis.set(FIRST_START, now.timestamp(), nx=True)

    def first_start(self, storage: Storage, now: datetime) -> datetime:
        """When Outkeep first ran with this storage: what an emptied Redis forgets, storage does not.

        Raises the storage's errors only where Redis does not know either.
        """
        known = cast(bytes | None, self._redis.get(FIRST_START))
        first = now if known is None else _moment(known)
        try:
            first = Identity(self._redis, storage).note_first_start(first)
        except StorageFailure:
            if known is None:
                raise
            return first
        self._redis.set(FIRST_START, first.timestamp())
        return first

    def mark(self, kind: Kind) -> datetime | None:
        """From which time of creation the next pass has to look; None before the first complete one."""
        at = cast(bytes | None, self._redis.hget(RECONCILE_MARKS, kind))
        return _moment(at) if at else None

    def set_mark(self, kind: Kind, mark: datetime) -> None:
        """Remember that everything created before `mark` is dealt with."""
        self._redis.hset(RECONCILE_MARKS, kind, str(mark.timestamp()))

    def completed(self, now: datetime) -> None:
        """Remember that a pass over everything is complete."""
        self._redis.set(RECONCILED, now.timestamp())

    def settled(self, kind: Kind, ids: Sequence[str]) -> set[str]:
        """Those of which a record says that they are past running, or that were removed or passed over."""
        if not ids:
            return set()
        with self._redis.pipeline(transaction=False) as pipeline:
            for identity in ids:
                pipeline.hmget(record_key(kind, identity), "state", "source")
                pipeline.exists(removed_key(kind, identity))
            pipeline.zmscore(PASSED_OVER, [record_member(kind, identity) for identity in ids])
            *answers, passed = pipeline.execute()
        running = {None, State.RUNNING.encode()}
        return {
            identity
            for identity, (state, source), removed, over in zip(
                ids, answers[0::2], answers[1::2], passed, strict=True
            )
            if (state not in running and source != b"cog") or removed or over is not None
        }

    def pass_over(self, kind: Kind, identity: str, now: datetime) -> None:
        """Leave one alone from now on."""
        self._redis.zadd(PASSED_OVER, {record_member(kind, identity): now.timestamp()})
        self._redis.zremrangebyscore(PASSED_OVER, "-inf", now.timestamp() - FORGOTTEN_AFTER)


def age(redis: Redis, now: float) -> float | None:
    """Seconds since the last complete pass ended; `now` is the Unix time."""
    at = cast(bytes | None, redis.get(RECONCILED))
    return None if at is None else now - float(at)


def _moment(text: bytes) -> datetime:
    return datetime.fromtimestamp(float(text), UTC)
