"""Where signed but unusable deliveries are set aside: a small document, beside it the bytes as they came."""

import base64
import hashlib
import json
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from app.core.context import Query
from app.core.errors import StorageFailure, Unusable
from app.core.manifest import Source, format_time
from app.core.names import (
    QUARANTINE,
    Kind,
    is_quarantine_of_cog,
    quarantine_body_name,
    quarantine_day,
    quarantine_name,
)
from app.core.prediction import parse_time
from app.storage.store import Storage

INLINE = 64 << 10
"""Bytes of the largest body that stands in the document, too."""

QUOTA = 1 << 30
"""Bytes that may be set aside."""

COG_PART = 4
"""Cog's sender gets one part in so many of the quota: its token takes no room from what is signed."""

SMALLEST = 64 << 10
"""What an object counts for at least: so the quota bounds their number, too."""

LIFE = timedelta(days=30)

COUNTED_FOR = timedelta(minutes=1)
"""How long a count stands, with what this process adds: each listing is one that a store may charge for."""

TIDIED_EVERY = timedelta(hours=1)

RETRY_AFTER = 10

log = logging.getLogger("outkeep.receiver")


@dataclass(frozen=True)
class Aside:
    """A delivery that cannot be used, and why."""

    kind: Kind
    body: bytes = field(repr=False)
    reason: Unusable
    received_at: datetime
    source: Source
    query: Query
    headers: Mapping[str, str]


class Quarantine:
    """Methods block, and raise `Transient` when the storage fails or holds no more."""

    def __init__(
        self, storage: Storage, *, disk_floor: int | None, clock: Callable[[], datetime], quota: int = QUOTA
    ) -> None:
        """`disk_floor` (bytes) is what downloads leave free; half of it stays free here, as in the spool."""
        self._storage = storage
        self._disk_floor = disk_floor
        self._clock = clock
        self._quota = quota
        self._lock = threading.Lock()
        self._used: Counter[bool] = Counter()  # bytes of what is Cog's, and of what is not
        self._counted_at: datetime | None = None

    def put(self, aside: Aside) -> None:
        """Return once a delivery is kept; the same one again takes the same place."""
        digest = hashlib.sha256(aside.body).hexdigest()
        day, of_cog = aside.received_at.astimezone(UTC).date().isoformat(), aside.source == "cog"
        name = quarantine_name(day, digest, of_cog=of_cog)
        is_small = len(aside.body) <= INLINE
        text = _text(aside.body) if is_small else None
        body_at = quarantine_body_name(name) if text is None else None
        document = {
            "reason": {"code": aside.reason.code, "message": aside.reason.message},
            "received_at": format_time(aside.received_at),
            "source": aside.source,
            "kind": aside.kind,
            "query": aside.query,
            "headers": dict(aside.headers),
            "size": len(aside.body),
            "sha256": digest,
            "body": text,
            "body_base64": base64.b64encode(aside.body).decode() if is_small else None,
            "body_at": body_at,
        }
        data = json.dumps(document, indent=1).encode()
        if self._storage.head(name) is not None:
            self._storage.settle(name)  # that try may have been killed before
            return
        self._require_room([len(data), *([len(aside.body)] if body_at else [])], of_cog=of_cog)
        # The document comes last: once it is there, all is there.
        if body_at is not None:
            self._storage.put_bytes(body_at, aside.body)
        self._storage.put_bytes(name, data)
        facts = {"code": aside.reason.code, "object": name}
        log.warning("a delivery cannot be used; it is kept aside", extra=facts)

    def tidy(self) -> None:
        """Remove what was set aside long ago, and count the rest; every hour, however often it is called."""
        if self._counted_at is None or self._clock() - self._counted_at >= TIDIED_EVERY:
            self._count()

    def _require_room(self, sizes: Sequence[int], *, of_cog: bool) -> None:
        self._storage.require_room(sum(sizes), self._disk_floor)
        size = sum(max(one, SMALLEST) for one in sizes)
        with self._lock:
            if self._counted_at is None or self._clock() - self._counted_at >= COUNTED_FOR:
                self._count()
            left = self._quota - self._used.total()
            if of_cog:
                left = min(left, self._quota // COG_PART - self._used[True])
            if size > left:
                message = (
                    f"{self._used.total() >> 20} MiB lie in {QUARANTINE}, {self._used[True] >> 20} of them "
                    f"of Cog, and {self._quota >> 20} MiB are the most, for Cog a quarter of that: "
                    "look what sends them (`outkeep ls --quarantine`), and remove them"
                )
                raise StorageFailure("quarantine_full", message, retry_after=RETRY_AFTER)
            self._used[of_cog] += size

    def _count(self) -> None:
        now, used, old = self._clock(), Counter[bool](), []
        for name, stored in self._storage.objects(QUARANTINE):
            day = quarantine_day(name)  # the disk dates by the clock of its host, which may be wrong
            since = stored.changed_at if day is None else day + timedelta(days=1)
            if now - since > LIFE:
                old.append(name)
            else:
                used[is_quarantine_of_cog(name)] += max(stored.size, SMALLEST)
        self._storage.remove(old)
        self._used, self._counted_at = used, now


def is_older(storage: Storage, name: str, changed_at: datetime, limit: datetime) -> bool:
    """Whether an object below `QUARANTINE` was set aside before `limit`: by its date, and what it says.

    One that tells neither goes by the time of its file, which is that of the clock of its host.
    """
    day = quarantine_day(name)
    if day is not None and not day <= limit < day + timedelta(days=1):
        return day < limit
    with suppress(ValueError, AttributeError, TypeError):
        document = storage.get(re.sub(r"\.bin$", ".json", name))
        if document is not None:
            return (parse_time(json.loads(document).get("received_at")) or changed_at) <= limit
    return changed_at <= limit


def _text(body: bytes) -> str | None:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        return None
