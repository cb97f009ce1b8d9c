"""What API and pages can have done: each is what the command of that name does."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, Literal, cast
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError

from app.accept.records import Records
from app.core import notation
from app.core.errors import OutkeepError, Permanent, Rejected
from app.core.handlers import Handler
from app.core.manifest import format_time
from app.core.names import COUNTERS, Kind, bulk_replay_key
from app.core.prediction import parse_time
from app.core.vocabulary import REMOVED
from app.maintain.backlog import handler_counts
from app.maintain.handler_states import HandlerStates
from app.maintain.removal import LocalCopies, Removal
from app.maintain.replay import Outcome, Replay, Replayed, failures
from app.storage.store import Storage
from app.telemetry.tally import series
from app.web import models
from app.web.catalog import Catalog, Filters

REMEMBERED = 86400
"""Seconds for which a bulk replay is known after its latest step."""

SILENT = 60.0
"""Seconds without a step after which the process that made a bulk replay must be gone."""

STEP = 20
"""Predictions between two notes of how far a bulk replay is."""

_Todo = tuple[str | None, Kind, str]
"""Handler (None: keep the outputs, or tell all that want it), kind and id."""


@dataclass
class Actions:
    """Methods block; they raise `Rejected` for what is asked wrongly, redis-py's and the storage's errors."""

    redis: Redis
    records: Records
    storage: Storage
    catalog: Catalog
    handlers: Sequence[Handler]
    local: LocalCopies
    ttl: int
    clock: Callable[[], datetime]
    _ending: threading.Event = field(init=False, repr=False, default_factory=threading.Event)

    def close(self) -> None:
        """Leave a bulk replay where it is; what it has done so far is done."""
        self._ending.set()

    def replay(self, kind: Kind, prediction_id: str, handler: str | None) -> models.ReplayAnswer:
        """Tell again, all that want it or one of them; keep outputs where that had failed."""
        if handler is not None:
            self._require_handler(handler)
        lines = [one for one in self._replay(handler).one(prediction_id) if one.kind in {kind, None}]
        if not any(line.kind for line in lines):
            raise unknown(kind, prediction_id)
        return models.ReplayAnswer(kind=kind, id=prediction_id, results=[_line(one) for one in lines])

    def _replay(self, only: str | None) -> Replay:
        return Replay(self.redis, self.storage, self.records, self.handlers, only)

    def _require_handler(self, name: str) -> None:
        if name not in {handler.name for handler in self.handlers}:
            message = f"the handlers file has no handler {name!r}"
            raise Rejected("handler_unknown", message, status=404)

    def remove(self, kind: Kind, prediction_id: str) -> models.Removed:
        """Remove everything of a prediction."""
        removal = Removal(self.redis, self.storage, ttl=self.ttl, clock=self.clock, local=self.local)
        found = removal.find(kind, prediction_id)
        if not found:
            raise unknown(kind, prediction_id)
        removed = removal.remove(found)
        self.redis.hincrby(COUNTERS, series(REMOVED, [kind, "asked"]), 1)
        return models.Removed(
            kind=kind,
            id=prediction_id,
            objects=len(removed.objects),
            bytes=removed.size,
            jobs=len(removed.jobs),
            running=len(removed.running),
        )

    def enable(self, name: str) -> models.Enabled:
        """Switch a handler on again."""
        was_off = HandlerStates(self.redis).switch_on(name)
        if not was_off:
            self._require_handler(name)
        _, dead = handler_counts(self.redis)
        return models.Enabled(name=name, was_off=was_off, dead=dead[name])

    def plan(self, body: models.BulkBody) -> list[_Todo]:
        """What a bulk replay would do, in order."""
        if not body.failed and body.since is None:
            raise Rejected("nothing_chosen", "say which: failed, or since a moment", status=400)
        if body.handler is not None:
            self._require_handler(body.handler)
        since = moment(body.since, self.clock()) if body.since is not None else None
        if body.failed:
            return list(self._failed(body, since))
        refs = self.catalog.refs(Filters(model=body.model, since=since, handler=body.handler))
        return [(body.handler, *ref) for ref in refs]

    def _failed(self, body: models.BulkBody, since: datetime | None) -> Iterator[_Todo]:
        found = [
            one
            for one in failures(self.redis, self.records)
            if body.handler in {None, one.handler}
            and (since is None or (parse_time(one.at) or since) >= since)
        ]
        rows = self.catalog.rows((one.kind, one.id) for one in found) if body.model is not None else {}
        for one in found:
            name = (rows.get((one.kind, one.id)) or {}).get("model") or ""
            if body.model is None or fnmatchcase(name, body.model):
                yield one.handler, one.kind, one.id

    def begin_bulk(self, todo: Sequence[_Todo], *, failed: bool) -> models.BulkReplay:
        """Do all of that, in a thread; `bulk` tells how far it is."""
        identity, now = uuid4().hex[:20], format_time(self.clock())
        fields: dict[str, str | int] = {"state": "running", "count": len(todo), "done": 0, "refused": 0}
        self._note(identity, {**fields, "started_at": now})
        work = threading.Thread(
            target=self._run, args=(identity, todo), kwargs={"failed": failed}, name="replay", daemon=True
        )
        work.start()
        return self.bulk(identity)

    def bulk(self, identity: str) -> models.BulkReplay:
        """How far a bulk replay is."""
        raw = cast(Mapping[bytes, bytes], self.redis.hgetall(bulk_replay_key(identity)))
        texts = {name.decode(): value.decode() for name, value in raw.items()}
        started, updated = parse_time(texts.get("started_at")), parse_time(texts.get("updated_at"))
        if started is None or updated is None:
            raise Rejected("unknown", f"no bulk replay {identity} is known", status=404)
        state = texts["state"]
        if state == "running" and (self.clock() - updated).total_seconds() > SILENT:
            state = "interrupted"
        return models.BulkReplay(
            id=identity,
            state=cast(Literal["running"], state),
            count=int(texts["count"]),
            done=int(texts["done"]),
            refused=int(texts["refused"]),
            started_at=started,
            updated_at=updated,
            error=texts.get("error"),
        )

    def cancel_bulk(self, identity: str) -> models.BulkReplay:
        """Let a bulk replay end where it is; one that has ended stays as it is."""
        if self.bulk(identity).state == "running":
            self._note(identity, {"state": "canceled"})
        return self.bulk(identity)

    def _note(self, identity: str, fields: Mapping[str, str | int]) -> None:
        key = bulk_replay_key(identity)
        with self.redis.pipeline() as pipeline:
            pipeline.hset(key, mapping=cast(Any, {**fields, "updated_at": format_time(self.clock())}))
            pipeline.expire(key, REMEMBERED)
            pipeline.execute()

    def _run(self, identity: str, todo: Sequence[_Todo], *, failed: bool) -> None:
        done = refused = 0
        end: dict[str, str | int] = {"state": "done"}
        try:
            service = self._replay(None)
            for handler, kind, prediction_id in todo:
                refused += any(
                    line.outcome is Outcome.REFUSED
                    for line in _again(service, handler, kind, prediction_id, failed=failed)
                )
                done += 1
                if done % STEP == 0:
                    self._note(identity, {"done": done, "refused": refused})
                    if self._ending.is_set() or self.bulk(identity).state == "canceled":
                        end = {} if self.bulk(identity).state == "canceled" else {"state": "interrupted"}
                        break
        except (OutkeepError, RedisError) as error:
            code = error.code if isinstance(error, OutkeepError) else "redis_unavailable"
            end = {"state": "failed", "error": code}
        try:
            self._note(identity, {"done": done, "refused": refused, **end})
        except RedisError:
            return  # it is shown as interrupted


def _again(
    service: Replay, handler: str | None, kind: Kind, prediction_id: str, *, failed: bool
) -> list[Replayed]:
    if handler is not None:
        return [service.tell(handler, kind, prediction_id)]
    if failed:
        return [service.keep(kind, prediction_id)]
    return [line for line in service.one(prediction_id) if line.kind is kind]


def _line(line: Replayed) -> models.Replayed:
    return models.Replayed(outcome=line.outcome.value, handler=line.handler, reason=line.reason)


def unknown(kind: Kind, prediction_id: str) -> Rejected:
    """Nothing is known of it."""
    return Rejected("unknown", f"nothing is known of {kind} {prediction_id}", status=404)


def moment(text: str, now: datetime) -> datetime:
    """`24h` before now, or an RFC 3339 time; raises `Rejected` (`bad_moment`)."""
    try:
        return now - timedelta(seconds=notation.duration(text))
    except Permanent:
        found = parse_time(text)
    if found is None:
        raise Rejected("bad_moment", f"{text!r} is no moment: write 24h, or 2026-03-16T10:00:00Z", status=400)
    return found
