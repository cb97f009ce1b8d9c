"""Notify handlers again of what is stored, and list what has failed and waits for somebody.

Storage and the handlers file are enough to tell again, so it works with an emptied Redis, and years later.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, cast

from redis import Redis
from rq.job import Job

from app.accept import queues
from app.accept.records import Records
from app.core.errors import Permanent
from app.core.handlers import Handler, interested
from app.core.lifecycle import State
from app.core.manifest import Manifest, format_time
from app.core.names import (
    MANIFEST_NAME,
    NOTIFY_QUEUE,
    PERSIST_QUEUE,
    DeliveryRef,
    Kind,
    manifest_name,
    split_handle_job_id,
    split_notify_job_id,
    split_persist_job_id,
)
from app.core.policy import HOUR, PERSIST_MARGIN
from app.maintain.backlog import (
    backlog,
    by_delivery,
    forget_failed,
    hasten,
    replace_persist,
    telling_queues,
)
from app.maintain.handler_states import HandlerStates
from app.maintain.user_jobs import end_of, reason
from app.storage.store import Storage


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
        for ref, job_id in by_delivery(backlog(name, redis).failed):
            yield _users(redis, ref, job_id) if split_handle_job_id(job_id) else _told(redis, ref, job_id)


def _told(redis: Redis, ref: DeliveryRef, job_id: str) -> Failure:
    handler, kind, prediction_id = ref
    error, attempts, at = _end(redis, job_id)
    return Failure(kind, prediction_id, handler, error, attempts, at)


def _users(redis: Redis, ref: DeliveryRef, job_id: str) -> Failure:
    handler, kind, prediction_id = ref
    end = end_of(redis, job_id)
    error = reason(redis, job_id) or end.status
    return Failure(kind, prediction_id, handler, error, end.attempts, format_time(end.at))


def failed_predictions(redis: Redis, records: Records) -> list[tuple[Kind, str]]:
    """Those whose outputs could not be kept, by what their records or RQ say."""
    refs = {split_persist_job_id(job_id) for job_id in backlog(PERSIST_QUEUE, redis).failed}
    failed = {(record.kind, record.id) for record in records.newest() if record.state is State.FAILED}
    return sorted(failed | {ref for ref in refs if ref is not None})


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


CLOCKS_DIFFER = timedelta(hours=1)
"""How much earlier than `stored_at` a store may say that a manifest was written."""


class Outcome(StrEnum):
    """What became of one thing that was asked for."""

    ENQUEUED = "enqueued"
    """A new job does it."""
    HASTENED = "hastened"
    """A job that waited for its next attempt makes it now."""
    WAITING = "waiting"
    """A job is about to do it anyway."""
    REFUSED = "refused"
    """It cannot be done; `reason` says why."""


@dataclass(frozen=True)
class Replayed:
    """One line of the answer. `handler` is None where it is about keeping outputs or about nothing at all."""

    outcome: Outcome
    kind: Kind | None
    id: str
    handler: str | None = None
    job: str | None = None
    reason: str | None = None

    def to_object(self) -> dict[str, Any]:
        """What `--json` says."""
        return asdict(self)


_Job = tuple[str, str]
"""A queue, and the id of a job of it."""


class Replay:
    """One request to do things again; what waits and what has failed is read once, when it is made."""

    def __init__(
        self, redis: Redis, storage: Storage, records: Records, handlers: Sequence[Handler], only: str | None
    ) -> None:
        """Tell `handlers`, or the one named `only`. Raises redis-py's errors."""
        self._redis = redis
        self._storage = storage
        self._records = records
        self._handlers = {handler.name: handler for handler in handlers}
        self._only = only
        self._off = HandlerStates(redis).switched_off()
        self._coming: dict[DeliveryRef, str] = {}
        self._scheduled: dict[DeliveryRef, _Job] = {}
        self._dead: dict[DeliveryRef, list[_Job]] = defaultdict(list)
        self._foreign: list[str] = []
        for name in telling_queues(redis):
            self._read(name)

    def _read(self, name: str) -> None:
        """Note what waits, runs and has failed in a queue."""
        jobs = backlog(name, self._redis)
        self._coming |= dict(by_delivery([*jobs.queued, *jobs.running]))
        self._scheduled |= {ref: (name, job_id) for ref, job_id in by_delivery(jobs.scheduled)}
        for ref, job_id in by_delivery(jobs.failed):
            self._dead[ref].append((name, job_id))
        if name == NOTIFY_QUEUE:
            self._foreign += [job_id for job_id in jobs.failed if split_notify_job_id(job_id) is None]

    def one(self, prediction_id: str) -> Iterator[Replayed]:
        """Tell the handlers about a prediction or training; keep its outputs when that had failed.

        Raises `Transient` when the storage fails, as all of these methods do.
        """
        known = False
        for kind in Kind:
            record = self._records.get(kind, prediction_id)
            manifest, fault = self._manifest(kind, prediction_id)
            known = known or bool(record or manifest or fault)
            if record is not None and record.state is State.FAILED and self._only is None:
                yield self.keep(kind, prediction_id)
            elif record is not None and manifest is None and fault is None:
                yield _refused(kind, prediction_id, None, f"nothing is stored of it, it is {record.state}")
            if manifest is not None:
                told = list(self._tell_all(manifest))
                who = (
                    f"{self._only} does not want it"
                    if self._only
                    else "no handler of the handlers file wants it"
                )
                yield from told or [_refused(kind, prediction_id, self._only, who)]
            if fault is not None:
                yield _refused(kind, prediction_id, None, fault)
        if not known:
            yield _refused(None, prediction_id, None, "nothing is known of it")

    def failed(self) -> Iterator[Replayed]:
        """Tell all dead letters again, and keep the predictions whose outputs could not be kept."""
        if self._only is None:
            for kind, prediction_id in failed_predictions(self._redis, self._records):
                yield self.keep(kind, prediction_id)
        for ref in list(self._dead):
            if self._only in {None, ref[0]}:
                yield self.tell(*ref)
        for job_id in self._foreign:
            yield _refused(None, job_id, None, "it failed and is no job of ours; `rq info` shows it")

    def since(self, moment: datetime) -> Iterator[Replayed]:
        """Tell the handlers about everything that was stored since `moment` and that they want."""
        for kind in Kind:
            for name, changed_at in self._storage.listed(kind.folder):
                if not name.endswith(f"/{MANIFEST_NAME}") or changed_at < moment - CLOCKS_DIFFER:
                    continue
                prediction_id = name.split("/")[-2]
                manifest, fault = self._manifest(kind, prediction_id)
                if fault is not None:
                    yield _refused(kind, prediction_id, None, fault)
                elif manifest is not None and manifest.stored_at >= moment:
                    yield from self._tell_all(manifest)

    def _manifest(self, kind: Kind, prediction_id: str) -> tuple[Manifest | None, str | None]:
        """The manifest if there is one, or why it cannot be read."""
        try:
            return self._storage.read_manifest(kind, prediction_id), None
        except Permanent as error:
            return None, error.message

    def _tell_all(self, manifest: Manifest) -> Iterator[Replayed]:
        prediction = manifest.prediction
        ref = (prediction.kind, prediction.id)
        wanted = [handler.name for handler in interested(list(self._handlers.values()), prediction)]
        chosen = [name for name in wanted if self._only in {None, name}]
        for name in chosen:
            yield self.tell(name, *ref)

    def tell(self, handler: str, kind: Kind, prediction_id: str) -> Replayed:
        """Tell one handler about one prediction."""
        ref = (handler, kind, prediction_id)
        obstacle = self._obstacle(*ref)
        if obstacle is not None:
            return _refused(kind, prediction_id, handler, obstacle)
        job_id, outcome = self._coming.get(ref), Outcome.WAITING
        if job_id is None:
            name, job_id = self._scheduled.get(ref, (NOTIFY_QUEUE, None))
            outcome = Outcome.HASTENED
            if job_id is None or not hasten(self._redis, job_id, name):
                patience, outcome = self._handlers[handler].patience, Outcome.ENQUEUED
                job_id = queues.enqueue_replay(self._redis, *ref, timeout=patience)
            self._coming[ref] = job_id
        for name, dead in self._dead.pop(ref, ()):
            if dead != job_id:
                forget_failed(self._redis, name, dead)
        return Replayed(outcome, kind, prediction_id, handler, job_id)

    def _obstacle(self, handler: str, kind: Kind, prediction_id: str) -> str | None:
        if handler not in self._handlers:
            return f"the handlers file has no handler {handler!r}"
        if handler in self._off:
            return f"{handler} is switched off; `outkeep handlers enable {handler}` comes first"
        if self._records.is_removed(kind, prediction_id):
            return "it was removed"
        if self._storage.head(manifest_name(kind, prediction_id)) is None:
            return "nothing is stored of it"
        return None

    def keep(self, kind: Kind, prediction_id: str) -> Replayed:
        """Run the persist job of a prediction anew."""
        record = self._records.get(kind, prediction_id)
        has_body = record is not None and (record.body or record.body_at) is not None
        if not has_body and self._storage.head(manifest_name(kind, prediction_id)) is None:
            return _refused(kind, prediction_id, None, "its event is gone, and nothing is stored of it")
        timeout = int(HOUR) + PERSIST_MARGIN
        job = queues.persist_job(self._redis, kind, prediction_id, timeout=timeout)
        new = replace_persist(self._redis, job)
        return Replayed(Outcome.ENQUEUED if new else Outcome.WAITING, kind, prediction_id, None, job.id)


def _refused(kind: Kind | None, prediction_id: str, handler: str | None, reason: str) -> Replayed:
    return Replayed(Outcome.REFUSED, kind, prediction_id, handler, None, reason)
