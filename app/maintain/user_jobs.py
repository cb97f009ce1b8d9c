"""How the user's jobs ended: the outcome beside the manifest, and the reason.

A job of a handler ends in a process of ours or of the user's own, which knows nothing of us. So what is told
is read from RQ: by the work-horse as soon as it has ended, and by the sweep for all others. Whoever comes
first marks the job's hash.
"""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import cast

from redis import Redis
from rq.job import Job, JobStatus
from rq.results import Result
from rq.utils import now

from app.accept.changes import Notified
from app.accept.queues import USERS_RETRIES, queue
from app.core.manifest import format_time
from app.core.names import CHANGES, COUNTERS, JOB_TOLD, record_member, split_handle_job_id
from app.core.outcomes import Told
from app.core.vocabulary import NOTIFIED
from app.maintain.backlog import telling_queues
from app.storage.store import Storage
from app.telemetry.logs import cleaned
from app.telemetry.tally import series

FIELDS = ("status", "ended_at", "number_of_retries", "retries_left", JOB_TOLD)
"""Of the hash of a job: what `end_of` reads."""

OUTCOMES = {
    JobStatus.FINISHED: "delivered",
    JobStatus.FAILED: "dead",
    JobStatus.STOPPED: "dead",
    JobStatus.CANCELED: "dead",
}

_LONGEST = 200
_PAGE = 1000

log = logging.getLogger("outkeep.notify")

_MARK = """
-- KEYS: 1 job, 2 stream of changes  ARGV: 1 name of the field, 2 the end, 3 whose it is, 4 what is told
-- A job that has expired stays gone.
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 100000, '*', 'of', ARGV[3], 'what', 'told', 'told', ARGV[4])
return 1
"""


class End:
    """The end of one run of a job, read from `fields` of its hash."""

    def __init__(self, fields: list[bytes | None]) -> None:
        texts = [(field or b"").decode(errors="replace") for field in fields]
        self.status, ended_at, asked, left, self.told = texts
        self.word = f"{self.status} {ended_at}"
        self._at: datetime | None = None
        with suppress(ValueError):  # a job whose worker died has none
            at = datetime.fromisoformat(ended_at)
            self._at = at if at.tzinfo else at.replace(tzinfo=UTC)
        self.at = self._at or now()
        # RQ counts the runs that a job has asked for itself, and apart from them those that it has left.
        self.attempts = 1 + _number(asked, 0) + max(0, USERS_RETRIES - _number(left, USERS_RETRIES))

    @property
    def outcome(self) -> str | None:
        """What it means for the delivery; None while it has not ended."""
        return OUTCOMES.get(cast(JobStatus, self.status))

    @property
    def is_news(self) -> bool:
        """Whether it has ended, and nobody has told so."""
        return self.outcome is not None and self.told != self.word

    def age(self, now: datetime) -> float:
        """Seconds since it ended; without end where RQ does not say when that was."""
        return math.inf if self._at is None else (now - self._at).total_seconds()


def end_of(redis: Redis, job_id: str) -> End:
    """How a job stands."""
    return End(cast(list[bytes | None], redis.hmget(Job.key_for(job_id), FIELDS)))


def untold(redis: Redis, names: Sequence[str]) -> Iterator[tuple[str, End]]:
    """The jobs of the queues `names` that have ended without anybody telling so."""
    for name in names:
        ended = [job_id for job_id in _ended(redis, name) if split_handle_job_id(job_id)]
        for first in range(0, len(ended), _PAGE):
            yield from _news(redis, ended[first : first + _PAGE])


def _ended(redis: Redis, name: str) -> Iterator[str]:
    jobs = queue(name, redis)
    for registry in (jobs.finished_job_registry, jobs.failed_job_registry, jobs.canceled_job_registry):
        yield from registry.get_job_ids(cleanup=False)


def _news(redis: Redis, job_ids: Sequence[str]) -> Iterator[tuple[str, End]]:
    with redis.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.hmget(Job.key_for(job_id), FIELDS)
        answers = pipeline.execute()
    for job_id, answer in zip(job_ids, answers, strict=True):
        end = End(answer)
        if end.is_news:
            yield job_id, end


def tell(redis: Redis, storage: Storage, job_id: str, end: End) -> None:
    """Write and log how a delivery ended whose job has ended; raises redis-py's errors and the storage's."""
    place = split_handle_job_id(job_id)
    if place is None or end.outcome is None:
        return
    why = None if end.outcome == "delivered" else reason(redis, job_id) or end.status
    known = storage.outcome(*place)
    if known is None or known.at <= end.at:
        storage.note_outcome(*place, Told(end.outcome, end.attempts, end.at, why))
    notified = Notified(place[0], end.outcome, end.attempts, format_time(end.at), why)
    news = (JOB_TOLD, end.word, record_member(*place[1:]), json.dumps(asdict(notified)))
    if redis.eval(_MARK, 2, Job.key_for(job_id), CHANGES, *news):
        redis.hincrby(COUNTERS, series(NOTIFIED, [place[0], end.outcome]), 1)
        _say(job_id, end, why)


def tell_ends(redis: Redis, storage: Storage) -> None:
    """Write the outcomes that are missing; raises redis-py's errors and the storage's.

    Over all queues there are: handlers may have named others when the jobs were made.
    """
    for job_id, end in untold(redis, telling_queues(redis)):
        tell(redis, storage, job_id, end)


def _say(job_id: str, end: End, why: str | None) -> None:
    said = facts(job_id) | {"attempts": end.attempts}
    if why is None:
        log.info("a job of a handler has finished", extra=said)
    else:
        said |= {"reason": why}
        log.error("a job of a handler has failed for good, and waits for a replay: %s", why, extra=said)


def facts(job_id: str) -> dict[str, str]:
    """What a log line says of a job: which one, and whose it is if it is a handler's."""
    place = split_handle_job_id(job_id)
    whose = {"handler": place[0], "kind": str(place[1]), "id": place[2]} if place else {}
    return {**whose, "job": job_id}


def reason(redis: Redis, job_id: str) -> str | None:
    """Why the last run of a job failed, in a line."""
    try:
        result = Result.fetch_latest(Job(job_id, connection=redis))
        lines = (result.exc_string or "").strip().splitlines() if result else []
    except (ValueError, KeyError, TypeError):  # planted by somebody else
        return None
    return shortened(lines[-1]) if lines else None


def shortened(why: str) -> str:
    """The first line of a reason, and of a long one its begin; without secrets, since it is kept."""
    return cleaned((why.strip().splitlines() or [""])[0])[:_LONGEST]


def _number(text: str, otherwise: int) -> int:
    return int(text) if text.isdecimal() else otherwise
