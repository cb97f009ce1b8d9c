"""Looking for secrets where none may be: in logs, answers, files and Redis."""

import base64
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from redis import Redis

SECRET_SETTINGS = (
    "OUTKEEP_ADMIN_TOKEN",
    "OUTKEEP_COG_TOKEN",
    "OUTKEEP_SECRET_KEY",
    "REPLICATE_API_TOKEN",
    "REPLICATE_WEBHOOK_SECRET",
)
SHORTEST = 12
"""Shorter ones are words of a test, which may stand anywhere."""


def spellings(secret: str) -> set[bytes]:
    """A secret as it is, without its prefix, decoded, and as URLs, JSON and base64 would write it."""
    bare = secret.removeprefix("whsec_")
    found = {secret.encode(), bare.encode(), quote(secret, safe="").encode()}
    found.add(json.dumps(secret)[1:-1].encode())
    found.add(base64.b64encode(secret.encode()))
    with suppress(ValueError):
        found.add(base64.b64decode(bare, validate=True))
    return {spelling for spelling in found if len(spelling) >= SHORTEST}


def leaks(secrets: Iterable[str], places: Iterable[tuple[str, bytes]]) -> list[str]:
    """Where which secret was found; `places` are names with contents."""
    wanted = {secret: spellings(secret) for secret in secrets}
    return [
        f"{secret[:10]}… in {place}"
        for place, content in places
        for secret, known in wanted.items()
        if any(spelling in content for spelling in known)
    ]


def files(folder: Path, *, but: Iterable[str] = ()) -> Iterator[tuple[str, bytes]]:
    """Every file below `folder`, its name included in what is searched."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in but:
            with suppress(FileNotFoundError):  # somebody still works there
                yield str(path), str(path).encode() + b"\n" + path.read_bytes()


def redis_contents(redis: Redis) -> Iterator[tuple[str, bytes]]:
    """Every key with its value; what RQ has compressed is shown in clear."""
    for key in sorted(cast(list[bytes], redis.keys("*"))):
        yield f"Redis {key!r}", key + b"\n" + b"\n".join(map(_clear, _members(redis, key)))


def _members(redis: Any, key: bytes) -> Iterable[bytes]:
    match redis.type(key):
        case b"hash":
            return [part for pair in redis.hgetall(key).items() for part in pair]
        case b"list":
            return list(redis.lrange(key, 0, -1))
        case b"set":
            return list(redis.smembers(key))
        case b"zset":
            return list(redis.zrange(key, 0, -1))
        case b"stream":
            return [repr(redis.xrange(key)).encode()]
        case _:
            return [redis.get(key) or b""]


def _clear(value: bytes) -> bytes:
    with suppress(zlib.error):
        return zlib.decompress(value)
    return value
