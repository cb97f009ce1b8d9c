"""The stream of changes in Redis: an entry for each move of a record, and for each attempt to tell a handler.

Whoever moves a record appends the entry in the same step, in its Lua, so that it costs no round trip. The
stream is trimmed and no ledger: the catalog and open pages follow it, and start anew from storage when they
have missed something. Fields of an entry: `of` (`<kind>:<id>`) and `what`: the new state of the record,
`removed`, or `told`; an attempt has also `told`, JSON.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline

from app.core.names import CHANGES, ID, Kind, record_member, split_member

MOST = 100_000
"""Entries that are kept, about; the scripts say the same number. Some megabytes of Redis."""

REMOVED = "removed"
TOLD = "told"
REBUILD = "rebuild"
"""Of nothing in particular: each catalog is to be built anew."""


@dataclass(frozen=True)
class Notified:
    """An attempt to tell a handler. `outcome`: `delivered`, `dead`, `off`; None: it is tried again."""

    handler: str
    outcome: str | None
    attempts: int
    at: str
    error: str | None
    child: str | None = None


@dataclass(frozen=True)
class Change:
    """One entry; `position` is its id in the stream. `kind` and `id` are None for `REBUILD`."""

    position: str
    what: str
    kind: Kind | None = None
    id: str | None = None
    notified: Notified | None = None


def note_attempt(redis: "Redis | Pipeline", kind: Kind, prediction_id: str, notified: Notified) -> None:
    """Append an attempt."""
    fields = {"of": record_member(kind, prediction_id), "what": TOLD, "told": json.dumps(asdict(notified))}
    redis.xadd(CHANGES, cast(Any, fields), maxlen=MOST, approximate=True)


def ask_for_rebuild(redis: Redis) -> None:
    """Have every catalog that follows the stream built anew."""
    redis.xadd(CHANGES, {"of": "", "what": REBUILD}, maxlen=MOST, approximate=True)


def newest(redis: Redis) -> str:
    """The position after which everything is yet to come."""
    entries = cast(Sequence[tuple[bytes, Any]], redis.xrevrange(CHANGES, count=1))
    return entries[0][0].decode() if entries else "0-0"


def is_whole(redis: Redis, position: str) -> bool:
    """Whether nothing after `position` was trimmed: the entry there is still in the stream."""
    if position == "0-0":
        return not redis.exists(CHANGES)
    return bool(redis.xrange(CHANGES, position, position, count=1))


def after(redis: Redis, position: str, *, count: int, block: int | None = None) -> list[Change]:
    """The next changes, waiting up to `block` milliseconds for the first of them."""
    answer = cast(
        Sequence[tuple[bytes, Sequence[tuple[bytes, Mapping[bytes, bytes]]]]],
        redis.xread({CHANGES: position}, count=count, block=block),
    )
    return [change for _, entries in answer for entry in entries if (change := _change(*entry))]


def _change(position: bytes, fields: Mapping[bytes, bytes]) -> Change | None:
    """None for what is not ours: anybody may write to Redis."""
    what, member = fields.get(b"what", b"").decode(), fields.get(b"of", b"").decode(errors="replace")
    if what == REBUILD:
        return Change(position.decode(), what)
    try:
        kind, identity = split_member(member)
        notified = Notified(**json.loads(fields[b"told"])) if what == TOLD else None
    except (ValueError, KeyError, TypeError):
        return None
    return Change(position.decode(), what, kind, identity, notified) if ID.fullmatch(identity) else None
