"""What was given up and waits for somebody: dead letters, and predictions that could not be kept."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis
from rq.job import Job

from app import queues
from app.core.lifecycle import State
from app.core.manifest import format_time
from app.core.names import NOTIFY_QUEUE, Kind
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
    for record in records.newest():
        if record.state is State.FAILED:
            yield Failure(record.kind, record.id, None, record.error, 0, format_time(record.updated_at))
    for (handler, kind, prediction_id), job_id in queues.by_place(queues.backlog(NOTIFY_QUEUE, redis).failed):
        attempts = _attempts(redis, job_id)
        last = attempts[-1] if attempts else {}
        yield Failure(kind, prediction_id, handler, last.get("error"), len(attempts), last.get("at"))


def _attempts(redis: Redis, job_id: str) -> list[dict[str, Any]]:
    meta = cast(bytes | None, redis.hget(Job.key_for(job_id), "meta"))
    try:
        return list(json.loads(meta or b"{}").get("attempts", []))
    except (ValueError, AttributeError, TypeError):
        return []  # planted by somebody else
