"""Puts back into Redis, in one step for each prediction, what can be read from its manifest and outcomes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from redis import Redis
from rq.job import Job

from app.accept import queues
from app.accept.records import described
from app.core.handlers import Handler
from app.core.lifecycle import State
from app.core.manifest import Manifest, format_time
from app.core.names import (
    EVENTS,
    NOTIFY_QUEUE,
    RECORDS,
    notification_id,
    record_key,
    record_member,
    removed_key,
)
from app.core.outcomes import Told, document

_RESTORE = """
-- KEYS: 1 record, 2 index of records, 3 mark of what was removed, 4 queue of the jobs, 5 RQ's set of queues,
--       6 RQ's failed jobs, then the jobs
-- ARGV: 1 member of the index, 2 score there, 3 seconds that the record lives (0: none is wanted), 4 channel,
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
  redis.call('PUBLISH', ARGV[4], ARGV[1])
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
        place = (prediction.kind, prediction.id)
        member, fields = record_member(*place), _fields(wanted.manifest)
        arguments: list[str | bytes | float] = [
            member, stored_at.timestamp(), wanted.ttl, EVENTS, State.RUNNING, len(fields), *fields,
        ]  # fmt: skip
        jobs: list[tuple[Job, int]] = [
            (queues.notify_job(self._redis, handler.name, *place, timeout=handler.patience), 0)
            for handler in wanted.untold
        ]
        for handler, told in wanted.dead.items():
            how = document(notification_id(handler, *place), told)
            letter = queues.dead_letter(self._redis, handler, *place, how)
            jobs.append((letter, int(listed_until(told).timestamp())))
        for job, failed in jobs:
            job_fields = queues.fields(job)
            arguments += [job.id, failed, len(job_fields), *job_fields]
        queue, all_queues, failed_jobs = queues.keys(NOTIFY_QUEUE, self._redis)
        keys = [record_key(*place), RECORDS, removed_key(*place), queue, all_queues, failed_jobs]
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
