"""What was given up and waits for somebody: dead letters, and predictions that could not be kept."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis
from rq.job import Job

from app.accept.records import Records
from app.core.lifecycle import State
from app.core.manifest import format_time
from app.core.names import PERSIST_QUEUE, Kind, split_handle_job_id, split_persist_job_id
from app.maintain.backlog import Place, backlog, by_place, telling_queues
from app.maintain.user_jobs import end_of, reason


@dataclass(frozen=True)
class Failure:
    """`handler` is None for a prediction whose outputs could not be kept.

    `error` is a code, or for a job of the user's what it raised.
    """

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
    for name in telling_queues(redis):
        for place, job_id in by_place(backlog(name, redis).failed):
            yield _users(redis, place, job_id) if split_handle_job_id(job_id) else _told(redis, place, job_id)


def _told(redis: Redis, place: Place, job_id: str) -> Failure:
    handler, kind, prediction_id = place
    error, attempts, at = _end(redis, job_id)
    return Failure(kind, prediction_id, handler, error, attempts, at)


def _users(redis: Redis, place: Place, job_id: str) -> Failure:
    handler, kind, prediction_id = place
    end = end_of(redis, job_id)
    error = reason(redis, job_id) or end.status
    return Failure(kind, prediction_id, handler, error, end.attempts, format_time(end.at))


def failed_predictions(redis: Redis, records: Records) -> list[tuple[Kind, str]]:
    """Those whose outputs could not be kept, by what their records or RQ say."""
    places = {split_persist_job_id(job_id) for job_id in backlog(PERSIST_QUEUE, redis).failed}
    failed = {(record.kind, record.id) for record in records.newest() if record.state is State.FAILED}
    return sorted(failed | {place for place in places if place is not None})


def _end(redis: Redis, job_id: str) -> tuple[str | None, int, str | None]:
    """Why a delivery was given up, after how many attempts, and when."""
    meta = cast(bytes | None, redis.hget(Job.key_for(job_id), "meta"))
    try:
        memory: Mapping[str, Any] = json.loads(meta or b"{}")
        if told := memory.get("told"):
            return told["error"], int(told["attempts"]), told["at"]
        attempts = list(memory.get("attempts", []))  # its job was ended before it could say how it ended
        last = attempts[-1] if attempts else {}
        return last.get("error"), len(attempts), last.get("at")
    except (ValueError, KeyError, AttributeError, TypeError):
        return None, 0, None  # planted by somebody else
