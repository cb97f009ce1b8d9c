"""What was given up and waits for somebody: dead letters, and predictions that could not be kept."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis
from rq.job import Job

from app.backlog import backlog, by_place
from app.core.lifecycle import State
from app.core.manifest import format_time
from app.core.names import NOTIFY_QUEUE, PERSIST_QUEUE, Kind, split_persist_job_id
from app.records import Records


@dataclass(frozen=True)
class Failure:
    """`handler` is None for a prediction whose outputs could not be kept. `error` is a code."""

    kind: Kind
    id: str
    handler: str | None
    error: str | None
    attempts: int
    at: str | None


def failures(redis: Redis, records: Records) -> Iterator[Failure]:
    """Everything that `outkeep replay --failed` does again."""
    for kind, prediction_id in failed_predictions(redis, records):
        record = records.get(kind, prediction_id)
        error, at = (record.error, format_time(record.updated_at)) if record else (None, None)
        yield Failure(kind, prediction_id, None, error, 0, at)
    for place, job_id in by_place(backlog(NOTIFY_QUEUE, redis).failed):
        handler, kind, prediction_id = place
        attempts = _attempts(redis, job_id)
        last = attempts[-1] if attempts else {}
        yield Failure(kind, prediction_id, handler, last.get("error"), len(attempts), last.get("at"))


def failed_predictions(redis: Redis, records: Records) -> list[tuple[Kind, str]]:
    """Those whose outputs could not be kept, by what their records or RQ say."""
    places = {split_persist_job_id(job_id) for job_id in backlog(PERSIST_QUEUE, redis).failed}
    failed = {(record.kind, record.id) for record in records.newest() if record.state is State.FAILED}
    return sorted(failed | {place for place in places if place is not None})


def _attempts(redis: Redis, job_id: str) -> list[dict[str, Any]]:
    meta = cast(bytes | None, redis.hget(Job.key_for(job_id), "meta"))
    try:
        return list(json.loads(meta or b"{}").get("attempts", []))
    except (ValueError, AttributeError, TypeError):
        return []  # planted by somebody else
