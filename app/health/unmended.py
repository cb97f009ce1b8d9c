"""What the sweep would mend if it ran now; nothing is changed."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from redis import Redis
from redis.exceptions import ResponseError

from app.accept.records import Records
from app.accept.spool import Spool
from app.clock import Clock, clock_of
from app.core import findings as rules
from app.core.errors import OutkeepError, Permanent
from app.core.findings import Finding, Level
from app.core.lifecycle import Repair
from app.core.names import Kind
from app.maintain.gaps import Gap, Gaps
from app.maintain.removal import unended
from app.maintain.stray_claims import stray_claims
from app.maintain.strays import Strays, abandoned, locked
from app.settings import Settings
from app.storage.store import Storage

AGAIN = 1.0
"""Seconds after which a job that stood in no list is looked for again: RQ moves some in two steps."""


def unmended(redis: Redis, settings: Settings, users: Sequence[str] = ()) -> list[Finding]:
    """Gaps in Redis and stray files on this host; raises redis' errors when it does not answer.

    `users` are queues beside ours that hold jobs of the user's.
    """
    found: dict[Repair, list[str]] = defaultdict(list)
    storage, clock = _storage(settings), clock_of(redis)
    try:
        for gap in _gaps(redis, settings, clock, users):
            found[gap.repair].append(gap.name)
        found[Repair.REMOVAL_ENDED] += unended(redis, clock())
        outputs, now = storage.folder if storage else None, clock.time()
        found[Repair.FILE_REMOVED] += map(str, _files(redis, settings, outputs, now))
        found[Repair.CLAIM_REMOVED] += _claims(redis, settings, storage, now)
    except (ResponseError, OSError) as error:
        return [Finding(Level.WARN, "gaps", f"cannot be looked for ({type(error).__name__}): {error}")]
    return rules.gaps(found)


def _gaps(redis: Redis, settings: Settings, clock: Clock, users: Sequence[str]) -> list[Gap]:
    def look() -> list[Gap]:
        return list(Gaps(redis, ttl=settings.record_ttl, clock=clock, users=users).look())

    found = look()
    if not any(gap.repair is Repair.JOB_REQUEUED for gap in found):
        return found
    time.sleep(AGAIN)
    still = set(look())
    return [gap for gap in found if gap in still]


def _storage(settings: Settings) -> Storage | None:
    try:
        return Storage(settings.storage_url)
    except Permanent:  # the check of the storage says why
        return None


def _claims(redis: Redis, settings: Settings, storage: Storage | None, now: float) -> list[str]:
    if storage is None:
        return []
    records = Records(redis, ttl=settings.record_ttl)
    try:
        return list(stray_claims(storage, records, held_for=settings.record_ttl, now=now))
    except OutkeepError:  # the same
        return []


def _files(redis: Redis, settings: Settings, outputs: Path | None, now: float) -> Iterator[Path]:
    records = Records(redis, ttl=settings.record_ttl)

    def is_known(kind: Kind, prediction_id: str) -> bool:
        return records.get(kind, prediction_id) is not None

    strays = Strays(
        settings.temporary,
        outputs,
        held_for=settings.record_ttl,
        is_known=is_known,
        is_removed=records.is_removed,
        is_kept=records.is_kept,
    )
    if settings.temporary.is_dir():
        with locked(settings.temporary):
            yield from abandoned(settings.temporary)
    yield from strays.downloads()
    yield from strays.half_written()
    yield from Spool(settings.data / "spool", disk_floor=settings.disk_floor).abandoned(now)
