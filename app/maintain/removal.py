"""Remove everything of a prediction: jobs, files, record, and what this host alone holds of it.

First a mark: from then on no delivery about it is taken for new, and no job is made for it. Then go its jobs,
its files, and last of all the manifest. What is being removed stands on a list in Redis until nothing is left
and no job of it runs, so that the sweep ends what a crash has cut off.

The note that something was removed holds when that was, and nothing else. It stands for longer than
reconciliation looks back.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

from redis import Redis

from app.core.errors import StorageFailure
from app.core.lifecycle import State
from app.core.manifest import farewell
from app.core.names import (
    AWAITED,
    AWAITED_HERE,
    CHANGES,
    CLAIMS,
    FOLLOW_UPS_OPEN,
    QUARANTINE,
    RECORDS,
    REMOVALS,
    REMOVED,
    RUNNING,
    RUNNING_OF_COG,
    THUMBS_OF_ANY,
    Kind,
    awaited_member,
    folder_name,
    follow_up_child,
    follow_up_key,
    held_place,
    is_spooled,
    manifest_name,
    quarantine_body_name,
    record_key,
    record_member,
    removed_key,
    removed_name,
    split_claim_name,
    split_handle_job_id,
    split_member,
    split_notify_job_id,
    split_outcome_name,
    thumb_name,
)
from app.core.reconciling import FARTHEST_LOOK
from app.maintain.albums import Albums
from app.maintain.backlog import Trace, Traces, forget
from app.storage.store import Storage, Stored


@dataclass(frozen=True)
class LocalCopies:
    """The folders of this host. Methods raise `OSError`."""

    temporary: Path
    spool: Path
    thumbs: Path

    def of(self, kind: Kind, prediction_id: str) -> list[Path]:
        """The files that hold something of a prediction."""
        ref = (kind, prediction_id)
        downloads = (path for path in _files(self.temporary) if held_place(path.name) == ref)
        deliveries = (path for path in _files(self.spool) if is_spooled(path.name, kind, prediction_id))
        thumbs = self.thumbs.glob(thumb_name(kind, prediction_id, THUMBS_OF_ANY) + "*")
        return sorted([*downloads, *deliveries, *thumbs])


def _files(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except FileNotFoundError:
        return


LIFE = timedelta(seconds=FARTHEST_LOOK + 86400.0)

LOOK_EVERY = timedelta(hours=1)
"""Between two looks for old notes: each is a listing that a store may charge for."""


class RemovedNotes:
    """Methods raise the storage's errors."""

    def __init__(self, storage: Storage, clock: Callable[[], datetime]) -> None:
        self._storage = storage
        self._clock = clock
        self._looked_at: datetime | None = None

    def add(self, kind: Kind, prediction_id: str) -> None:
        """Note that a prediction is removed."""
        self._storage.put_bytes(removed_name(kind, prediction_id), farewell(self._clock()))

    def has(self, kind: Kind, prediction_id: str) -> bool:
        """Whether a prediction was removed lately."""
        return self._storage.head(removed_name(kind, prediction_id)) is not None

    def tidy(self) -> None:
        """Forget what was removed long ago."""
        now = self._clock()
        if self._looked_at is not None and now - self._looked_at < LOOK_EVERY:
            return
        self._looked_at = now
        self._storage.remove(
            [name for name, noted_at in self._storage.listed(REMOVED) if now - noted_at > LIFE]
        )


PATIENCE = 60.0
"""Seconds that a removal gets before the sweep looks after it."""

AT_ONCE = 100
"""Removals that one sweep ends."""

_BEGIN = """
-- KEYS: 1 record, 2 index of records, 3 mark of what was removed, 4 what is being removed,
--       5 what is awaited, 6 what was created here and is awaited, then where it may merely run
-- ARGV: 1 member of index and list, 2 how long the mark stands (s), 3 now (s), 4 stream of changes,
--       5 the only state in which the record may be ('': any), then how it may be called where it is awaited
local state = redis.call('HGET', KEYS[1], 'state')
if ARGV[5] ~= '' and state and state ~= ARGV[5] then return 0 end
redis.call('SET', KEYS[3], 1, 'EX', ARGV[2])
redis.call('ZADD', KEYS[4], ARGV[3], ARGV[1])
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[5], unpack(ARGV, 6))
for at = 6, #KEYS do redis.call('ZREM', KEYS[at], ARGV[1]) end
redis.call('XADD', ARGV[4], 'MAXLEN', '~', 100000, '*', 'of', ARGV[1], 'what', 'removed')
return 1
"""


@dataclass(frozen=True)
class Found:
    """What there is of a prediction, or what was removed of it."""

    kind: Kind
    id: str
    state: State | None = None
    """Of its record; None when there is none."""
    objects: Sequence[str] = ()
    """Names in storage."""
    size: int = 0
    """Bytes of those."""
    jobs: Sequence[Trace] = ()
    local: Sequence[Path] = ()
    quarantined: Sequence[str] = ()
    """Deliveries about it that could not be used."""
    unnoted: str = ""
    """Why storage took no note of the removal; the sweep tries again."""

    def __bool__(self) -> bool:
        return bool(self.state or self.objects or self.jobs or self.local or self.quarantined)

    @property
    def running(self) -> Sequence[Trace]:
        """Jobs that only their end ends."""
        return [job for job in self.jobs if job.runs]


class Removal:
    """Removes over one Redis connection. Any step may be cut off; doing it again goes on from there.

    `ttl` is how long (seconds) a late delivery is taken for a repeat. `local` are the folders of this host.
    """

    def __init__(
        self,
        redis: Redis,
        storage: Storage,
        *,
        ttl: int,
        clock: Callable[[], datetime],
        local: LocalCopies | None = None,
    ) -> None:
        self._redis = redis
        self._storage = storage
        self._ttl = ttl
        self._clock = clock
        self._local = local
        self._notes = RemovedNotes(storage, clock)
        self._begin = redis.register_script(_BEGIN)

    def find(self, kind: Kind, prediction_id: str) -> Found:
        """What there is of a prediction; raises `Transient`, redis-py's errors and `OSError`, as all here."""
        state = cast(bytes | None, self._redis.hget(record_key(kind, prediction_id), "state"))
        objects = dict(self._storage.objects(folder_name(kind, prediction_id)))
        objects |= _claims(self._storage, kind, prediction_id)
        return Found(
            kind,
            prediction_id,
            state=None if state is None else State(state.decode()),
            objects=sorted(objects),
            size=sum(stored.size for stored in objects.values()),
            jobs=Traces(self._redis).of(kind, prediction_id),
            local=self._local.of(kind, prediction_id) if self._local else (),
        )

    def search(self, kind: Kind, prediction_id: str) -> Found:
        """As `find`, in quarantine too: what was set aside and names the prediction as its own.

        All of it is read for that, and as text: it could not be parsed, or it would not be there.
        """
        named = [name for name in self._storage.names(QUARANTINE) if self._names(name, kind, prediction_id)]
        return replace(self.find(kind, prediction_id), quarantined=named)

    def _names(self, name: str, kind: Kind, prediction_id: str) -> bool:
        """Whether an object in quarantine tells of a delivery of this kind that has this id."""
        document = (self._storage.get(name) or b"") if name.endswith(".json") else b""
        if f'"kind": "{kind}"'.encode() not in document:
            return False
        if _spelled(prediction_id, quote=rb'\\"', gap=rb"(?:\s|\\[nrt])*").search(document):
            return True  # as a text in it
        body = self._storage.get(quarantine_body_name(name)) if b'"body_at": "' in document else None
        return _spelled(prediction_id, quote=b'"', gap=rb"\s*").search(body or b"") is not None

    def remove(self, found: Found) -> Found:
        """Remove what was found, and what has come since; what that was."""
        kind, prediction_id = found.kind, found.id
        self._mark(kind, prediction_id, only=None)
        now = replace(self.find(kind, prediction_id), state=found.state, quarantined=found.quarantined)
        self._storage.remove([*map(quarantine_body_name, now.quarantined), *now.quarantined])
        for path in now.local:
            path.unlink(missing_ok=True)
        return self._finish(now)

    def retire(self, found: Found) -> Found | None:
        """Remove a prediction of which nothing is under way; None when that is not so."""
        if not self._mark(found.kind, found.id, only=State.DISPATCHED):
            return None
        return self._finish(found)

    def resume(self) -> list[Found]:
        """End removals that were begun a while ago; what was still there."""
        limit = self._clock().timestamp() - PATIENCE
        members = self._redis.zrangebyscore(REMOVALS, "-inf", limit, start=0, num=AT_ONCE)
        refs = [split_member(member.decode()) for member in cast(list[bytes], members)]
        return [found for ref in refs if (found := self.remove(Found(*ref)))]

    def _mark(self, kind: Kind, prediction_id: str, *, only: State | None) -> bool:
        mark = removed_key(kind, prediction_id)
        keys = [record_key(kind, prediction_id), RECORDS, mark, REMOVALS, AWAITED, AWAITED_HERE]
        keys += [RUNNING, RUNNING_OF_COG]
        now = self._clock().timestamp()
        member = record_member(kind, prediction_id)
        awaited = [awaited_member(kind, prediction_id, web=web) for web in (False, True)]
        args: list[str | float] = [member, self._ttl, now, CHANGES, only or "", *awaited]
        return bool(self._begin(keys=keys, args=args))

    def _finish(self, found: Found) -> Found:
        jobs = [replace(job, runs=not forget(self._redis, job)) for job in found.jobs]
        ref = (found.kind, found.id)
        unnoted = self._note(*ref)
        erase(self._storage, *ref, self._clock())
        if unnoted:
            unnoted = self._note(*ref)  # there may be room now
        Albums(self._redis).drop(*ref)
        if not unnoted and not any(job.runs for job in jobs):
            followed = _follow_ups(found)
            self._redis.delete(follow_up_child(found.id), *(follow_up_key(*ref) for ref in followed))
            if followed:
                self._redis.hdel(FOLLOW_UPS_OPEN, *(":".join(ref) for ref in followed))
            self._redis.zrem(REMOVALS, record_member(found.kind, found.id))
        return replace(found, jobs=jobs, unnoted=unnoted)

    def _note(self, kind: Kind, prediction_id: str) -> str:
        """Note in storage that it is removed; why that was not possible: a full one shall get room."""
        try:
            self._notes.add(kind, prediction_id)
        except StorageFailure as error:
            return error.message
        return ""


def erase(storage: Storage, kind: Kind, prediction_id: str, now: datetime) -> None:
    """Remove all objects of a prediction, its manifest last; raises `Transient`.

    Until then a note stands in the place of the manifest, so that nobody takes for whole what is left.
    """
    folder, manifest = folder_name(kind, prediction_id), manifest_name(kind, prediction_id)
    names = set(storage.names(folder))
    if manifest in names and len(names) > 1:
        try:
            storage.put_bytes(manifest, farewell(now))
        except StorageFailure:  # full, perhaps: to remove is what makes room
            storage.remove([manifest])
    storage.remove(sorted([*_claims(storage, kind, prediction_id), *(names - {manifest})]))
    storage.remove(sorted(names & {manifest}))
    storage.remove(sorted(storage.names(folder)))  # a follow-up may have been noted here meanwhile
    storage.remove_folder(folder)


def _spelled(prediction_id: str, *, quote: bytes, gap: bytes) -> re.Pattern[bytes]:
    """An object's own id, as JSON has it."""
    return re.compile(quote + b"id" + quote + gap + b":" + gap + quote + prediction_id.encode() + quote)


def _claims(storage: Storage, kind: Kind, prediction_id: str) -> dict[str, Stored]:
    """Its large bodies that wait."""
    found = storage.objects(CLAIMS)
    return {name: one for name, one in found if (split_claim_name(name) or ())[:2] == (kind, prediction_id)}


def _follow_ups(found: Found) -> list[tuple[str, Kind, str]]:
    """The places of what may follow it, one for each handler that was told or has a job."""
    jobs = [split_notify_job_id(job.id) or split_handle_job_id(job.id) for job in found.jobs]
    files = [split_outcome_name(name.rpartition("/")[2]) for name in found.objects]
    handlers = {name for name in files if name} | {ref[0] for ref in jobs if ref}
    return [(handler, found.kind, found.id) for handler in sorted(handlers)]
