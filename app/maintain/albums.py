"""Albums: chosen predictions that whoever has the link may look at, until its end or until it is revoked.

One stands in Redis alone, as the list of what is in it; the link says the rest, signed. So it ends when it is
revoked, also where Redis has lost its data, and a prediction that is removed leaves it at once.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

from redis import Redis

from app.core.errors import Permanent
from app.core.names import ALBUMS, Kind, album_key, record_member, split_member

MOST = 200
"""Predictions in one album."""

LONGEST = timedelta(days=365)
USUAL_DAYS = 7


@dataclass(frozen=True)
class Album:
    """`until` is when it ends, `count` how many are in it."""

    id: str
    until: datetime
    count: int


@dataclass(frozen=True)
class Albums:
    """Methods raise redis-py's errors."""

    redis: Redis

    def make(self, refs: Sequence[tuple[Kind, str]], *, until: datetime, now: datetime) -> Album:
        """Put predictions into a new one, in their order; raises `Permanent` for too many or too long."""
        if not 0 < len(refs) <= MOST:
            raise Permanent("bad_album", f"an album holds 1 to {MOST} predictions, and this has {len(refs)}")
        if not now < until <= now + LONGEST:
            raise Permanent("bad_album", f"an album lasts for 1 to {LONGEST.days} days")
        album_id = secrets.token_hex(8)
        members = {record_member(*ref): place for place, ref in enumerate(refs)}
        with self.redis.pipeline() as pipeline:
            pipeline.zremrangebyscore(ALBUMS, "-inf", now.timestamp())
            pipeline.zadd(album_key(album_id), members)
            pipeline.expireat(album_key(album_id), until)
            pipeline.zadd(ALBUMS, {album_id: until.timestamp()})
            pipeline.execute()
        return Album(album_id, until, len(members))

    def members(self, album_id: str) -> list[tuple[Kind, str]]:
        """What is in it, in its order; nothing when it has ended, was revoked or never was."""
        found = cast(list[bytes], self.redis.zrange(album_key(album_id), 0, -1))
        return [split_member(member.decode()) for member in found]

    def all(self, now: datetime) -> list[Album]:
        """Those that have not ended, the one that ends first before the others."""
        found = cast(
            list[tuple[bytes, float]],
            self.redis.zrangebyscore(ALBUMS, now.timestamp(), "+inf", withscores=True),
        )
        with self.redis.pipeline(transaction=False) as pipeline:
            for album_id, _ in found:
                pipeline.zcard(album_key(album_id.decode()))
            counts = cast(list[int], pipeline.execute())
        return [
            Album(album_id.decode(), datetime.fromtimestamp(until, UTC), count)
            for (album_id, until), count in zip(found, counts, strict=True)
        ]

    def revoke(self, album_id: str) -> bool:
        """End it now; whether it was there."""
        with self.redis.pipeline() as pipeline:
            pipeline.zrem(ALBUMS, album_id)
            pipeline.delete(album_key(album_id))
            return bool(pipeline.execute()[0])

    def drop(self, kind: Kind, prediction_id: str) -> None:
        """Take a prediction out of all of them."""
        found = cast(list[bytes], self.redis.zrange(ALBUMS, 0, -1))
        if not found:
            return
        with self.redis.pipeline(transaction=False) as pipeline:
            for album_id in found:
                pipeline.zrem(album_key(album_id.decode()), record_member(kind, prediction_id))
            pipeline.execute()
