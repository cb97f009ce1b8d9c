"""What API and pages show: read from the catalog, from Redis and from storage, and put into `app.web.models`.

All methods block, and are called through `Library.run`, in threads that nothing else waits for.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from redis import Redis
from rq.job import Job

from app.accept import queues
from app.accept.records import Record, Records
from app.core import outcomes
from app.core.context import lineage
from app.core.findings import Finding, Level
from app.core.handlers import Call, FollowUp, Handler, Target, Webhook
from app.core.lifecycle import State
from app.core.links import LIFE, LinkKeys, file_path, sign_path
from app.core.manifest import Manifest
from app.core.names import (
    NOTIFY_QUEUE,
    Kind,
    folder_name,
    handle_job_id,
    notify_job_id,
    replay_job_id,
    split_outcome_name,
)
from app.core.outcomes import Told
from app.core.prediction import parse_time
from app.health.checks import Recent
from app.maintain.backlog import handler_counts
from app.maintain.handler_states import HandlerStates
from app.maintain.replay import Failure, failures
from app.maintain.user_jobs import end_of, reason
from app.storage.store import Storage
from app.web import models
from app.web.catalog import Catalog, Filters, filled
from app.web.entries import Entry, of_record, told_of

THREADS = 4
"""Reads at the same time: more wait, so that they never crowd deliveries out."""

DAY = 86400
MOST_RUNNING = 50
MOST_REPLAYS = 9
LATEST = 10
"""Results of a handler that are shown."""

CHECKS_PATIENCE = 10.0
CHECKS_KEPT = 30.0
"""Seconds for which the findings of `doctor` are told again: each look writes to storage."""

SUMS_KEPT = 20.0
"""How many times as long as sums took they are told again: many readers take a twentieth of a core."""

MOST_SUMS = 50

T = TypeVar("T")


@dataclass
class Library:
    """Everything that can be looked at. `examine` makes the findings of `outkeep doctor`."""

    catalog: Catalog
    redis: Redis
    records: Records
    storage: Storage
    handlers: Sequence[Handler]
    links: LinkKeys
    base_url: str
    clock: Callable[[], datetime]
    examine: Callable[[], list[Finding]]
    public_storage_url: str | None = None
    _threads: ThreadPoolExecutor = field(
        init=False, repr=False, default_factory=partial(ThreadPoolExecutor, THREADS, "web")
    )
    _checks: Recent[list[Finding]] = field(init=False, repr=False)
    _summing: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)
    _summed: dict[tuple[str, int], tuple[float, list[dict[str, Any]]]] = field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        self._checks = Recent(self.examine, kept=CHECKS_KEPT)

    async def run(self, read: Callable[[], T]) -> T:
        """Call one of the methods below from a coroutine."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, read)

    def close(self) -> None:
        """Take no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def link(self, kind: Kind, prediction_id: str, name: str, *, base_url: str | None = None) -> str:
        """A link to a stored file, the same all day and good for at least seven more.

        `base_url` is what it begins with: ours as the world sees it, or nothing for a page of ours.
        """
        today = int(self.clock().timestamp()) // DAY * DAY
        path = sign_path(file_path(kind, prediction_id, name), today + LIFE, self.links)
        return f"{self.base_url if base_url is None else base_url}{path}"

    def page(
        self,
        filters: Filters,
        limit: int = 50,
        before: int | None = None,
        *,
        base_url: str | None = None,
    ) -> tuple[list[models.Summary], int | None]:
        """A part of a list, and the key below which the next one begins. Raises `Transient`."""
        rows, following = self.catalog.page(filters, limit, before)
        return [self.summary(filled(row), base_url=base_url) for row in rows], following

    def summary(self, entry: Entry, *, base_url: str | None = None) -> models.Summary:
        """How a list shows one."""
        picture = None
        if entry.picture is not None and entry.picture_type is not None:
            url = self.link(entry.kind, entry.id, entry.picture, base_url=base_url)
            picture = models.Picture(name=entry.picture, media_type=entry.picture_type, url=url)
        return models.Summary(
            kind=entry.kind,
            id=entry.id,
            state=entry.state,
            status=entry.status,
            model=entry.model,
            version=entry.version,
            source=entry.source,
            parent=entry.parent,
            received_at=entry.received_at,
            created_at=entry.created_at,
            completed_at=entry.completed_at,
            stored_at=entry.stored_at,
            expires_at=entry.expires_at,
            files=entry.files,
            bytes=entry.bytes,
            lost=entry.lost,
            picture=picture,
            prompt=entry.prompt,
            text=entry.output or None,
            error=entry.error,
            told=list(entry.told),
            predict_seconds=entry.predict_seconds,
        )

    def summaries(
        self, refs: Iterable[tuple[Kind, str]], *, base_url: str | None = None
    ) -> dict[str, models.Summary]:
        """How lists show these, by their ids."""
        rows = self.catalog.rows(refs)
        return {ref[1]: self.summary(filled(row), base_url=base_url) for ref, row in rows.items()}

    def elsewhere(self) -> str | None:
        """A URL of where links to stored files lead on to, beside ourselves; None: we serve them."""
        if self.storage.folder is not None:
            return None
        return self.public_storage_url or self.storage.link("probe")

    def one(self, kind: Kind, prediction_id: str, *, base_url: str | None = None) -> models.Whole | None:
        """All that is known of a prediction; None: nothing. Raises the storage's and redis-py's errors.

        A manifest that cannot be used raises `Permanent` (`manifest_unreadable`).
        """
        [record] = self.records.look([(kind, prediction_id)])
        manifest = self.storage.read_manifest(kind, prediction_id)
        if record is None and manifest is None:
            return None
        told = self._told(kind, prediction_id) if manifest else {}
        return models.Whole(
            kind=kind,
            id=prediction_id,
            record=_view(record) if record else None,
            manifest=json.loads(manifest.to_json()) if manifest else None,
            files=list(self._files(manifest, base_url)) if manifest else [],
            lost=list(_losses(manifest)) if manifest else [],
            told=[told_of(handler, one) for handler, one in told.items()],
            lineage=self._lineage(prediction_id, manifest, record, told),
            expires_at=of_record(record).expires_at if record and manifest is None else None,
        )

    def _files(self, manifest: Manifest, base_url: str | None) -> Iterator[models.File]:
        prediction = manifest.prediction
        for file in manifest.kept:
            assert file.name is not None
            yield models.File(
                name=file.name,
                url=self.link(prediction.kind, prediction.id, file.name, base_url=base_url),
                pointer=file.pointer,
                source=file.source,
                media_type=file.media_type,
                size=file.size or 0,
                sha256=file.sha256 or "",
                encoding=file.encoding,
                is_input=file.is_input,
            )

    def _told(self, kind: Kind, prediction_id: str) -> dict[str, Told]:
        found = {}
        for name in sorted(self.storage.names(folder_name(kind, prediction_id))):
            handler = split_outcome_name(name.rpartition("/")[2])
            told = outcomes.read(self.storage.get(name) or b"") if handler else None
            if handler is not None and told is not None:
                found[handler] = told
        return found

    def _lineage(
        self,
        prediction_id: str,
        manifest: Manifest | None,
        record: Record | None,
        told: Mapping[str, Told],
    ) -> models.Lineage:
        source = manifest or record
        assert source is not None
        before = lineage(source.receipt.context)
        parent = before.parent if before else source.receipt.parent
        children = {one.child: handler for handler, one in told.items() if one.child is not None}
        rows, _ = self.catalog.page(Filters(parent=prediction_id), MOST_RUNNING, None)
        for row in reversed(rows):
            children.setdefault(row["id"], None)  # type: ignore[arg-type]
        return models.Lineage(
            parent=models.Relative(id=parent, handler=before.handler if before else None) if parent else None,
            children=[models.Relative(id=child, handler=handler) for child, handler in children.items()],
        )

    def attempts(self, kind: Kind, prediction_id: str) -> models.Attempts:
        """Every attempt to tell of a prediction that is remembered, job by job."""
        told = self._told(kind, prediction_id)
        names = dict.fromkeys([*(one.name for one in self.handlers), *told])
        found = []
        for handler in names:
            first = self._job(handler, None, notify_job_id(handler, kind, prediction_id))
            replays = [
                self._job(handler, number, replay_job_id(handler, kind, prediction_id, number))
                for number in range(1, MOST_REPLAYS + 1)
            ]
            jobs = [job for job in (first, *replays) if job is not None]
            if not jobs and handler in told:
                shown = told_of(handler, told[handler])
                jobs = [
                    models.HandlerAttempts(
                        handler=handler, replay=None, outcome=shown.outcome, count=shown.attempts,
                        attempts=[], next_at=None,
                    )
                ]  # fmt: skip
            found += jobs
        return models.Attempts(results=found)

    def _job(self, handler: str, replay: int | None, job_id: str) -> models.HandlerAttempts | None:
        """What a notify job remembers, and the job of the user's that it has handed its event to."""
        with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.hmget(Job.key_for(job_id), "status", "meta")
            pipeline.zscore(queues.queue(NOTIFY_QUEUE, self.redis).scheduled_job_registry.key, job_id)
            (status, meta), due = cast(tuple[list[bytes | None], float | None], tuple(pipeline.execute()))
        if status is None:
            return None
        memory = _memory(meta)
        attempts = [_attempt(one) for one in memory.get("attempts", ()) if isinstance(one, dict)]
        outcome: models.Outcome = "pending"
        if isinstance(told := memory.get("told"), dict) and told.get("outcome") in {
            "delivered",
            "dead",
            "off",
        }:
            outcome = told["outcome"]
        elif status == b"finished":
            outcome = self._of_user(job_id, attempts)
        elif status in {b"failed", b"stopped", b"canceled"}:
            outcome = "dead"
        next_at = None if due is None else datetime.fromtimestamp(due, UTC)
        return models.HandlerAttempts(
            handler=handler, replay=replay, outcome=outcome, count=len(attempts), attempts=attempts,
            next_at=next_at,
        )  # fmt: skip

    def _of_user(self, job_id: str, attempts: list[models.Attempt]) -> models.Outcome:
        """How the job of the user's stands that a notify job has made; adds its last run."""
        users = handle_job_id(job_id)
        end = end_of(self.redis, users)
        if not end.status:
            return "delivered"
        why = None if end.outcome == "delivered" else reason(self.redis, users) or end.status
        if end.outcome is None:
            return "pending"
        attempts.append(
            models.Attempt(
                at=end.at, status=None, error=why, detail=f"run {end.attempts} of {users}", milliseconds=0
            )
        )
        return "delivered" if end.outcome == "delivered" else "dead"

    def handler_views(self) -> models.Handlers:
        """How each handler fares; raises redis-py's errors."""
        waiting, dead = handler_counts(self.redis)
        states = HandlerStates(self.redis)
        targets = {handler.name: handler.target for handler in self.handlers}
        others = sorted((waiting.keys() | dead.keys()) - targets.keys())
        since = self.clock() - timedelta(days=1)
        views = []
        for name in [*targets, *others]:
            state = states.get(name)
            rows, told = self.catalog.results(name, LATEST, since)
            kind, target = _target(targets.get(name))
            views.append(
                models.HandlerView(
                    name=name,
                    state=state.word if name in targets else "unknown",
                    type=kind,
                    target=target,
                    off_since=parse_time(state.off_since),
                    waiting=waiting[name],
                    dead=dead[name],
                    delivered_today=told,
                    last=models.LastAttempt(**state.last) if state.last else None,
                    results=[_result(row) for row in rows],
                )
            )
        return models.Handlers(results=views)

    async def checks(self) -> models.Checks:
        """What `outkeep doctor` says; the findings of a few seconds ago at most."""
        try:
            findings = await asyncio.wait_for(self._checks.get(), CHECKS_PATIENCE)
        except TimeoutError:  # each check waits for itself, and many may hang
            hung = f"no answer within {CHECKS_PATIENCE:g} s; `outkeep doctor` waits for all of them"
            findings = [Finding(Level.FAIL, "checks", hung)]
        return models.Checks(
            ok=not any(one.level is Level.FAIL for one in findings),
            findings=[models.Check(level=one.level, check=one.check, detail=one.detail) for one in findings],
        )

    def stats(self, since: datetime, by: str) -> models.Stats:
        """Sums since then, by `model` or `day`."""
        rows = self._sums(since, by)
        groups = [_group(row) for row in rows if not row["total"]]
        total = next((_group(row) for row in rows if row["total"]), None) or _group(_NOTHING)
        state = self.catalog_state()
        return models.Stats(since=since, by=by, total=total, groups=groups, catalog=state)

    def _sums(self, since: datetime, by: str) -> list[dict[str, Any]]:
        """The sums of a catalog, worked out for one reader at a time, and told again for a while."""
        asked = (by, round((self.clock() - since).total_seconds() / 60))
        with self._summing:
            until, rows = self._summed.get(asked, (0.0, []))
            began = time.monotonic()
            if began >= until:
                rows = self.catalog.sums(since, by)
                ended = time.monotonic()
                if len(self._summed) >= MOST_SUMS:
                    self._summed.clear()
                self._summed[asked] = (ended + SUMS_KEPT * (ended - began), rows)
        return rows

    def catalog_state(self) -> models.CatalogState:
        """Whether the catalog is whole."""
        state, read, entries = self.catalog.state()
        return models.CatalogState(state=state, read=read, entries=entries)

    def running(self, *, base_url: str | None = None) -> list[models.Running]:
        """What runs now, or waits to be kept: what expires first comes first."""
        rows = [
            row
            for state in (State.RECEIVED, State.RUNNING)
            for row in self.catalog.page(Filters(state=state), MOST_RUNNING, None)[0]
        ]
        records = self.records.look([(Kind(row["kind"]), row["id"]) for row in rows])
        found = [
            models.Running(
                summary=self.summary(of_record(record), base_url=base_url),
                live=_live(record),
                updated_at=record.updated_at,
            )
            for record in records
            if record is not None and record.state in {State.RECEIVED, State.RUNNING}
        ]
        never = datetime.max.replace(tzinfo=UTC)
        return sorted(found, key=lambda one: (one.summary.expires_at or never, one.summary.id))

    def failures(self, limit: int) -> list[Failure]:
        """What was given up and `outkeep replay --failed` does again, the newest first."""
        found = list(failures(self.redis, self.records))
        return sorted(found, key=lambda one: one.at or "", reverse=True)[:limit]


def _view(record: Record) -> models.RecordView:
    return models.RecordView(
        state=record.state,
        status=record.status,
        model=record.model,
        source=record.receipt.source,
        received_at=record.received_at,
        updated_at=record.updated_at,
        files=record.files,
        lost=record.lost,
        error=record.error,
        live=_live(record),
    )


def _live(record: Record) -> models.Live | None:
    shown = record.live
    if not shown:
        return None
    return models.Live(percent=shown.get("percent"), text=shown.get("text"), logs=shown.get("logs"))


def _losses(manifest: Manifest) -> Iterator[models.Loss]:
    for file in (*manifest.lost, *manifest.lost_inputs):
        yield models.Loss(
            pointer=file.pointer, source=file.source, error=file.error or "", is_input=file.is_input
        )


def _memory(meta: bytes | None) -> dict[str, Any]:
    """What a job remembers; empty for what others planted."""
    try:
        memory = json.loads(meta or b"{}")
    except ValueError:
        return {}
    return memory if isinstance(memory, dict) else {}


def _attempt(one: Mapping[str, Any]) -> models.Attempt:
    status, spent = one.get("status"), one.get("milliseconds")
    return models.Attempt(
        at=parse_time(one.get("at")),
        status=status if isinstance(status, int) else None,
        error=None if one.get("error") is None else str(one["error"]),
        detail=str(one.get("detail") or ""),
        milliseconds=spent if isinstance(spent, int) else 0,
    )


def _target(target: Target | None) -> tuple[str, str]:
    match target:
        case Webhook(url):
            return "url", urlsplit(url).netloc.rpartition("@")[2]  # its path and query may be secret
        case Call(function):
            return "job", function
        case FollowUp(model):
            return "predict", str(model)
    return "unknown", ""


def _result(row: Mapping[str, Any]) -> models.Result:
    told = models.Told(**row["told"])
    assert told.at is not None
    return models.Result(
        kind=Kind(row["kind"]), id=row["id"], outcome=told.outcome, at=told.at, error=told.error
    )


_NOTHING: Mapping[str, Any] = {
    "key": None, "count": 0, "succeeded": 0, "failed": 0, "lost": 0, "untold": 0, "files": 0, "bytes": 0,
    "predict_seconds": 0.0, "waits": {"completed_to_stored": (None, None), "stored_to_told": (None, None)},
}  # fmt: skip


def _group(row: Mapping[str, Any]) -> models.Group:
    waits = {name: models.Waits(p50=p50, p95=p95) for name, (p50, p95) in row["waits"].items()}
    numbers = {name: row[name] or 0 for name in _NOTHING if name not in {"key", "waits"}}
    return models.Group(key=row["key"], **numbers, **waits)
