"""Restore from storage what Redis has lost, in one step for each prediction."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain, islice
from types import MappingProxyType
from typing import TypeVar

from redis import Redis
from rq.job import Job

from app.accept import queues
from app.accept.records import described
from app.core import outcomes
from app.core.errors import OutkeepError
from app.core.handlers import Handler, interested
from app.core.lifecycle import State
from app.core.manifest import Manifest, format_time
from app.core.names import (
    CHANGES,
    NOTIFY_QUEUE,
    RECORDS,
    DeliveryRef,
    Kind,
    manifest_name,
    notification_id,
    object_name,
    outcome_name,
    record_key,
    record_member,
    removed_key,
)
from app.core.outcomes import Told, document
from app.maintain.backlog import backlog, by_delivery, telling_queues
from app.storage.store import Folder, Storage, folders

_RESTORE = """
-- KEYS: 1 record, 2 index of records, 3 mark of what was removed, 4 queue of the jobs, 5 RQ's set of queues,
--       6 RQ's failed jobs, then the jobs
-- ARGV: 1 member of the index, 2 score there, 3 seconds that the record lives (0: none is wanted), 4 stream,
--       5 state that gives way, 6 number of fields of the record, those;
--       of each job: id, until when RQ lists it as failed (0: it is to run), number of fields, those
if redis.call('EXISTS', KEYS[3]) == 1 then return {0, 0, 0} end
local at, restored, enqueued, listed = 7, 0, 0, 0
local count = tonumber(ARGV[6])
local state = redis.call('HGET', KEYS[1], 'state')
-- Progress that came late made a record that only looks alive; every other one knows more than storage does.
if tonumber(ARGV[3]) > 0 and (not state or state == ARGV[5]) then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], unpack(ARGV, at, at + count - 1))
  redis.call('EXPIRE', KEYS[1], ARGV[3])
  redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
  redis.call('XADD', ARGV[4], 'MAXLEN', '~', 100000, '*', 'of', ARGV[1], 'what', 'dispatched')
  restored = 1
end
at = at + count
for i = 7, #KEYS do
  local id, failed, size = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  at = at + 3
  -- As RQ's own enqueue with `unique`: a job that is known is left alone.
  if redis.call('EXISTS', KEYS[i]) == 0 then
    redis.call('HSET', KEYS[i], unpack(ARGV, at, at + size - 1))
    redis.call('SADD', KEYS[5], KEYS[4])
    if failed > 0 then
      redis.call('EXPIREAT', KEYS[i], failed)
      redis.call('ZADD', KEYS[6], failed, id)
      listed = listed + 1
    else
      redis.call('RPUSH', KEYS[4], id)
      enqueued = enqueued + 1
    end
  end
  at = at + size
end
return {restored, enqueued, listed}
"""


@dataclass(frozen=True)
class Wanted:
    """What should be in Redis of a prediction that is stored."""

    manifest: Manifest
    ttl: int
    """Seconds that its record lives; 0 when it has lived."""
    untold: Sequence[Handler]
    """Handlers without an outcome."""
    dead: Mapping[str, Told]
    """Handlers whose delivery was given up, with how."""


@dataclass(frozen=True)
class Made:
    """What was missing in Redis, and is there now."""

    record: bool
    jobs: int
    dead_letters: int


class Restoration:
    """Restores over one Redis connection: what is there already is left alone, so it may run at any time."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._script = redis.register_script(_RESTORE)

    def restore(self, wanted: Sequence[Wanted]) -> list[Made]:
        """Put back what is missing of each, in one round trip; raises redis-py's errors."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for one in wanted:
                keys, arguments = self._call(one)
                self._script(keys=keys, args=arguments, client=pipeline)
            return [
                Made(bool(record), int(jobs), int(letters)) for record, jobs, letters in pipeline.execute()
            ]

    def _call(self, wanted: Wanted) -> tuple[list[str], list[str | bytes | float]]:
        prediction, stored_at = wanted.manifest.prediction, wanted.manifest.stored_at
        ref = (prediction.kind, prediction.id)
        member, fields = record_member(*ref), _fields(wanted.manifest)
        arguments: list[str | bytes | float] = [
            member, stored_at.timestamp(), wanted.ttl, CHANGES, State.RUNNING, len(fields), *fields,
        ]  # fmt: skip
        jobs: list[tuple[Job, int]] = [
            (queues.notify_job(self._redis, handler.name, *ref, timeout=handler.patience), 0)
            for handler in wanted.untold
        ]
        for handler, told in wanted.dead.items():
            how = document(notification_id(handler, *ref), told)
            letter = queues.dead_letter(self._redis, handler, *ref, how)
            jobs.append((letter, int(listed_until(told).timestamp())))
        for job, failed in jobs:
            job_fields = queues.fields(job)
            arguments += [job.id, failed, len(job_fields), *job_fields]
        queue, all_queues, failed_jobs = queues.keys(NOTIFY_QUEUE, self._redis)
        keys = [record_key(*ref), RECORDS, removed_key(*ref), queue, all_queues, failed_jobs]
        return [*keys, *(job.key for job, _ in jobs)], arguments


def listed_until(told: Told) -> datetime:
    """Until when RQ lists a delivery that was given up."""
    return told.at + timedelta(seconds=queues.FAILURE_TTL)


def _fields(manifest: Manifest) -> list[str]:
    """The record as it stood when everything was done."""
    prediction, receipt = manifest.prediction, manifest.receipt
    fields: dict[str, str | None] = {
        "state": State.DISPATCHED,
        **described(prediction, receipt),
        "rank": prediction.progress_rank,
        "updated_at": format_time(manifest.stored_at),
        "context": json.dumps(receipt.context),
        "parent": receipt.parent,
        "files": str(len(manifest.kept)),
        "lost": str(len(manifest.lost)),
    }
    return [item for name, value in fields.items() if value is not None for item in (name, value)]


READERS = 16
"""Objects that are read at the same time: a store far away answers many for the price of one."""

BATCH = 200
"""Predictions that go to Redis in one round trip."""

T = TypeVar("T")


@dataclass(frozen=True)
class Rebuilt:
    """What became of one folder in storage. `fault` says why its manifest could not be used."""

    kind: Kind
    id: str
    record: bool = False
    """Whether it has a record again that it did not have."""
    expired: bool = False
    """Whether its record would have expired by now."""
    jobs: int = 0
    dead_letters: int = 0
    committed: bool = True
    """False when there is no manifest: it is on its way, or what it waited for is gone."""
    fault: str | None = None


@dataclass(frozen=True)
class _Read:
    folder: Folder
    manifest: Manifest | None
    told: Mapping[str, Told | None] = field(default_factory=dict)
    fault: str | None = None


class Rebuild:
    """One pass over storage. It may be killed anywhere, run again, and run beside live traffic."""

    def __init__(
        self,
        redis: Redis,
        storage: Storage,
        handlers: Sequence[Handler],
        *,
        ttl: int,
        everything: bool,
        clock: Callable[[], datetime],
    ) -> None:
        """Records live `ttl` seconds since they were stored; with `everything` since now, however old."""
        self._redis = redis
        self._storage = storage
        self._handlers = handlers
        self._ttl = ttl
        self._everything = everything
        self._clock = clock
        self._restoration = Restoration(redis)
        self._busy: set[DeliveryRef] = set()
        self._added: Mapping[str, datetime | None] = {}

    def run(
        self,
        found: Iterable[Folder] | None = None,
        *,
        oldest: datetime | None = None,
        added: Mapping[str, datetime | None] = MappingProxyType({}),
    ) -> Iterator[Rebuilt]:
        """Rebuild, folder by folder; raises `Transient` when storage is away, and redis-py's errors.

        `found` are the folders, instead of all. What was committed before `oldest` is left alone, and a
        handler is told of nothing that was stored before it was `added`.
        """
        self._added = added
        for queue in telling_queues(self._redis):
            jobs = backlog(queue, self._redis)
            listed = [*jobs.queued, *jobs.running, *jobs.scheduled, *jobs.failed]
            self._busy |= {ref for ref, _ in by_delivery(listed)}
        if found is None:
            found = chain.from_iterable(folders(self._storage, kind) for kind in Kind)
        if oldest is not None:
            found = (one for one in found if one.manifest is None or one.manifest.changed_at >= oldest)
        with ThreadPoolExecutor(READERS, thread_name_prefix="rebuild") as readers:
            for batch in _batches(found, BATCH):
                yield from self._restore(list(readers.map(self._read, batch)))

    def _read(self, folder: Folder) -> _Read:
        if folder.manifest is None:
            return _Read(folder, None)
        try:
            manifest = self._storage.read_manifest(*folder.place)
            fault = None if manifest else "it is torn, as after a power cut"
            told = {handler: self._told(name) for handler, name in folder.outcomes.items()}
            for handler in interested(self._handlers, manifest.prediction) if manifest else ():
                if handler.name not in told:  # perhaps since the listing
                    told[handler.name] = self._told(object_name(*folder.place, outcome_name(handler.name)))
        except OutkeepError as error:
            return _Read(folder, None, {}, error.message)
        return _Read(folder, manifest, told, fault)

    def _told(self, name: str) -> Told | None:
        data = self._storage.get(name)
        return None if data is None else outcomes.read(data)

    def _restore(self, batch: Sequence[_Read]) -> Iterator[Rebuilt]:
        wanted = [self._wanted(one.manifest, one.told) for one in batch if one.manifest]
        made = iter(zip(wanted, self._restoration.restore(wanted), strict=True))
        for one in batch:
            ref = one.folder.place
            if one.manifest is None:
                yield Rebuilt(*ref, committed=one.folder.manifest is not None, fault=one.fault)
            else:
                asked, done = next(made)
                yield Rebuilt(*ref, done.record, asked.ttl == 0, done.jobs, done.dead_letters)

    def _wanted(self, manifest: Manifest, told: Mapping[str, Told | None]) -> Wanted:
        prediction, now = manifest.prediction, self._clock()
        # What stands in RQ's lists knows its own end; its id may be that of a replay.
        idle = {name for name in told if (name, prediction.kind, prediction.id) not in self._busy}
        dead = {
            name: one
            for name, one in told.items()
            if name in idle and one is not None and one.is_dead_letter and listed_until(one) > now
        }
        untold = [
            handler
            for handler in interested(self._handlers, prediction)
            if handler.name in idle
            and told[handler.name] is None
            and ((added := self._added.get(handler.name)) is None or manifest.stored_at >= added)
        ]
        left = max(int(manifest.stored_at.timestamp() + self._ttl - now.timestamp()), 0)
        return Wanted(manifest, self._ttl if self._everything else left, untold, dead)


def object_of(rebuilt: Rebuilt) -> str:
    """The manifest that a line is about."""
    return manifest_name(rebuilt.kind, rebuilt.id)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
