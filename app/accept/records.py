"""The live view: one Redis hash per prediction, which expires and can be rebuilt from storage.

Fields of a record, all text: `state` (ours), `status` (Replicate's word), `rank` (orders progress), `model`,
`received_at`, `updated_at`, `webhook_id`, `source`, `query` and `context` (JSON), `context_from` (`run`: we
have noted the context ourselves; `disputed`: deliveries did not agree on one), `quiet` (set: no handler is
told, unless its own event comes after all), until stored `body` (as received) or `body_at` (the object that
holds it), `error` (a code), `files` and `lost` (counts),
`completed_at` and `created_at` (Replicate's), while it runs `live` (JSON: see `app.core.progress`), and
`kept:<number>` for each file that has ended while others are still tried.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

from redis import Redis
from redis.exceptions import RedisError

from app.accept.record_scripts import ACCEPT, KEEP, MOVE
from app.core.context import shortened
from app.core.errors import Permanent, Removed, Transient
from app.core.lifecycle import Move, State, origins, target
from app.core.manifest import Receipt, Source, format_time
from app.core.names import (
    AWAITED,
    AWAITED_HERE,
    CHANGES,
    NOTIFY_QUEUE,
    RECORDS,
    REFUSED,
    RUNNING,
    RUNNING_OF_COG,
    Kind,
    delivery_key,
    record_key,
    record_member,
    removed_key,
    split_member,
)
from app.core.policy import ask_delay
from app.core.prediction import Prediction, parse_time
from app.core.progress import live
from app.core.reconciling import SILENCE

if TYPE_CHECKING:
    from rq.job import Job

    from app.accept.group_commit import GroupCommit
    from app.accept.queues import NewJob

PAGE = 200

MAX_REFUSED = 10_000
"""Predictions with refused outputs that are looked at; those whose hour ends first."""

PROGRESS_REPEATED_FOR = 900
"""Seconds for which the id of a delivery counts once: a signature is good for 300 s before and after its
time. That of an end counts for as long as a record lives."""

_WHO_TELLS = {"run": "run", "reconcile": "api"}
"""How `ACCEPT` calls those who know of a context, by the source of a delivery."""

LARGE = 1 << 20
"""Bytes of the largest body that may stand in Redis; see `app.accept.claim_check`."""

MAX_MODEL = 256
"""Characters of a model's name in a record; the event holds all of it."""

MAX_QUERY = 16 << 10
"""Bytes of the JSON of a webhook URL's parameters: twice what most servers take of a URL."""

MOST_RUNNING = 20_000
"""Predictions with no more than progress that are remembered; those go that were not heard of for longest."""

COG_PART = 4
"""Of Cog, one in so many of these: a token displaces nothing that is signed."""

ACCEPT_DIGEST = hashlib.sha1(ACCEPT.encode(), usedforsecurity=False).hexdigest()
"""What Redis calls the script."""

_TOLD = (*map(str, origins(Move.TELL)), str(target(Move.TELL)))
"""The state of what nobody was to be told of, and the one in which handlers are."""

_REMOVED, _TO_BE_TOLD, _OVERRULED = -1, -2, -3
"""What `MOVE` answers when it does nothing."""

_Hash = Mapping[bytes, bytes]
_BODIES = frozenset({b"body", b"outline"})  # 0.1 also kept an outline of what the storage did not take
_SMALL = (
    "state", "status", "model", "received_at", "updated_at", "created_at", "completed_at", "webhook_id",
    "source", "query", "context", "parent", "quiet", "body_at", "files", "lost", "error", "live",
)  # fmt: skip


log = logging.getLogger("outkeep.receiver")


class Accepted(StrEnum):
    """What became of a delivery in Redis; one about what was removed is a repeat, too."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    PROGRESS = "progress"
    STALE = "stale"
    FOREIGN = "foreign"
    """Cog's end of what Replicate has told of: no more than a token vouches for it, and it closes nothing."""
    WANTED = "wanted"
    """Not a repeat, as was thought of an end that came without its body: nothing was done."""


@dataclass(frozen=True)
class Arrival:
    """A verified and parsed delivery on its way in."""

    prediction: Prediction
    body: bytes
    receipt: Receipt
    job: "Job | NewJob | None"
    """The persist job of a terminal event; None for progress."""
    body_at: str | None = None
    """The object in storage that holds the body, in the place of `body`."""
    is_asked_for: bool = False
    """Whether it was created here without a webhook: then nothing tells of its end but asking for it."""
    is_repeat: bool = False
    """Whether it is taken for a repeat, so that its large body was brought nowhere."""

    @property
    def move(self) -> Move:
        """What it does to its record."""
        return Move.PROGRESS if self.job is None else Move.FINISH

    @property
    def rank(self) -> str:
        """Its place among the progress of one prediction."""
        return self.prediction.progress_rank


@dataclass(frozen=True)
class Record:
    """A record as it stands in Redis."""

    kind: Kind
    id: str
    state: State
    status: str
    model: str | None
    received_at: datetime
    updated_at: datetime
    body: bytes | None
    body_at: str | None
    """The object in storage that holds the body; None when the record does, or it is stored."""
    receipt: Receipt
    files: int
    lost: int
    error: str | None
    created_at: datetime | None
    completed_at: datetime | None
    live: Mapping[str, Any]
    """See `app.core.progress.live`."""
    kept: Mapping[str, dict[str, Any]]
    """How files ended that are not tried any more, by their number; see `Records.keep`."""


class Records:
    """Records over one Redis connection. Methods block; errors are redis-py's, except where said."""

    def __init__(self, connection: Redis, *, ttl: int, most_running: int = MOST_RUNNING) -> None:
        """Keep records for `ttl` seconds after their latest change; with an event in them, until stored."""
        self._redis = connection
        self._ttl = ttl
        self._most_running = most_running
        self._move = connection.register_script(MOVE)
        self._keep = connection.register_script(KEEP)

    def accept(self, arrivals: Sequence[Arrival], now: datetime) -> list[Accepted]:
        """Record many deliveries and enqueue their jobs, in one round trip.

        Record and job of one delivery are written by one script, so no crash falls between them, and of
        any number of equal deliveries exactly one is `ACCEPTED`. Raises `Transient` when Redis did not
        confirm all of them: then each may or may not have been written, and sending it again is safe.
        Raises `Permanent` for a large body: it has to go through `ClaimCheck` first.
        """
        commands = [self.accept_command(arrival, now) for arrival in arrivals]
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                # Loaded every time: asking whether Redis still has it would be a second round trip.
                pipeline.script_load(ACCEPT)
                for command in commands:
                    pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
                return [Accepted(outcome.decode()) for outcome in pipeline.execute()[1:]]
        except RedisError as error:
            raise unconfirmed(error) from error

    def accept_command(self, arrival: Arrival, now: datetime) -> Sequence[str | bytes | int | float]:
        """The call of the script `ACCEPT`, once it is loaded, for one delivery; raises as `accept` does."""
        from app.accept import queues  # with RQ, which who only reads does without

        _require_small(arrival)
        prediction, job, receipt, move = arrival.prediction, arrival.job, arrival.receipt, arrival.move
        place = (prediction.kind, prediction.id)
        webhook_id, context, of_cog = receipt.webhook_id, receipt.context, receipt.source == "cog"
        delivery = delivery_key(prediction.id, webhook_id or "")
        keys = [record_key(*place), RECORDS, removed_key(*place), delivery]
        job_fields: Sequence[str | bytes] = ()
        if job is not None:
            keys += (job.key, *queues.keys(job.origin, self._redis))
            job_fields = queues.fields(job)
        keys.append(RUNNING_OF_COG if of_cog else RUNNING)
        keys += (AWAITED_HERE, AWAITED) if arrival.is_asked_for else (AWAITED, AWAITED_HERE)
        delivery_ttl: int | str = ""
        if webhook_id:
            delivery_ttl = self._ttl if move is Move.FINISH else min(self._ttl, PROGRESS_REPEATED_FOR)
        rank = arrival.rank
        fields = _fields(arrival, rank, now)
        return (
            "EVALSHA", ACCEPT_DIGEST, len(keys), *keys,
            move, rank, record_member(*place), self._ttl, now.timestamp(), job.id if job else "",
            CHANGES, State.RUNNING, State.RECEIVED, _score(arrival, now), "" if receipt.quiet else "1",
            *_TOLD, delivery_ttl, "1" if of_cog else "",
            json.dumps(context) if context is not None else "", receipt.parent or "",
            _WHO_TELLS.get(receipt.source, "url"), "" if arrival.is_repeat else "1",
            self._most_running // (COG_PART if of_cog else 1), len(fields), *fields, *job_fields,
        )  # fmt: skip

    def move(
        self,
        kind: Kind,
        prediction_id: str,
        move: Move,
        now: datetime,
        fields: Mapping[str, str | int] | None = None,
    ) -> bool:
        """Make a legal move and set fields with it; whether it was legal. What is stored needs no body."""
        return self._advance(kind, prediction_id, now, {move: fields or {}}, ()) == 1

    def dispatch(
        self,
        kind: Kind,
        prediction_id: str,
        now: datetime,
        fields: Mapping[str, str | int],
        jobs: "Sequence[Job]",
        *,
        source: Source = "webhook",
        quiet: bool = False,
    ) -> bool:
        """Note in one step that a prediction is stored, with `fields`, and that `jobs` (notify) are enqueued.

        Moves that are not legal are left out; a job that RQ knows by its id is left alone. False, and nothing
        is done, when it was `quiet` and is not any more: then there are jobs. `source` tells whose event is
        stored. Raises `Removed` when the prediction was removed: then nothing may be left of it; `Transient`
        when it is Cog's, and Replicate has told of the prediction meanwhile.
        """
        moves: dict[Move, Mapping[str, str | int]] = {Move.STORE: fields, Move.DISPATCH: {}}
        made = self._advance(kind, prediction_id, now, moves, jobs, quiet=quiet, source=source)
        return _is_dispatched(made, kind, prediction_id)

    def _advance(self, *move: Any, **about: Any) -> int:
        keys, arguments = self.moving(*move, **about)
        return int(self._move(keys=keys, args=arguments))

    def moving(
        self,
        kind: Kind,
        prediction_id: str,
        now: datetime,
        moves: Mapping[Move, Mapping[str, str | int]],
        jobs: "Sequence[Job]",
        *,
        quiet: bool = False,
        source: Source | None = None,
    ) -> tuple[list[str], list[str | bytes | float]]:
        """Keys and arguments of `MOVE`: it makes those of `moves` that are legal, and enqueues `jobs`.

        It answers how many moves were, or `_REMOVED`, `_TO_BE_TOLD` or `_OVERRULED` when it did nothing.
        """
        from app.accept import queues

        member = record_member(kind, prediction_id)
        arguments: list[str | bytes | float] = [self._ttl, now.timestamp(), member, CHANGES]
        arguments += ["1" if quiet else "", "1" if source == "cog" else "", len(moves)]
        for move, fields in moves.items():
            legal = [state for state in origins(move) if state is not None]
            pairs = [item for pair in {**fields, "updated_at": format_time(now)}.items() for item in pair]
            arguments += [target(move), len(legal), *legal, len(pairs), *pairs]
        for job in jobs:
            hash_fields = queues.fields(job)
            arguments += [job.id, len(hash_fields), *hash_fields]
        queue, all_queues, _ = queues.keys(NOTIFY_QUEUE, self._redis)
        keys = [
            record_key(kind, prediction_id), RECORDS, queue, all_queues, removed_key(kind, prediction_id),
            *(job.key for job in jobs),
        ]  # fmt: skip
        return keys, arguments

    def keep(self, kind: Kind, prediction_id: str, kept: Mapping[str, Mapping[str, Any]]) -> None:
        """Remember by number how files ended, so that later attempts skip them."""
        self._keep(keys=[record_key(kind, prediction_id)], args=_noted(kept))

    def refused(self, now: datetime) -> list[tuple[Kind, str]]:
        """Whose outputs were refused and still exist; what came to its hour is forgotten."""
        self._redis.zremrangebyscore(REFUSED, "-inf", now.timestamp())
        members = cast(list[bytes], self._redis.zrange(REFUSED, 0, MAX_REFUSED - 1))
        return [split_member(member.decode()) for member in members]

    def is_removed(self, kind: Kind, prediction_id: str) -> bool:
        """Whether somebody had the prediction removed, so that it must not come back."""
        return bool(self._redis.exists(removed_key(kind, prediction_id)))

    def is_repeat(self, arrival: Arrival, *, awaits_no: str) -> bool:
        """Whether an end would not be accepted now, and its record does not await the claim `awaits_no`.

        Raises `Transient`.
        """
        place = (arrival.prediction.kind, arrival.prediction.id)
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hmget(record_key(*place), "state", "source", "body_at")
                pipeline.exists(removed_key(*place))
                (state, source, body_at), removed = cast(tuple[list[bytes | None], int], pipeline.execute())
        except RedisError as error:
            raise unconfirmed(error) from error
        if removed or state is None:
            return removed == 1
        if (source == b"cog") != (arrival.receipt.source == "cog"):
            return arrival.receipt.source == "cog"
        return bool(state != State.RUNNING.encode() and body_at != awaits_no.encode())

    def is_kept(self, kind: Kind, prediction_id: str) -> bool:
        """Whether all of it is stored and handed on, so that no job works on its files any more."""
        record = self.get(kind, prediction_id)
        return record is not None and record.state is State.DISPATCHED and not record.lost

    def get(self, kind: Kind, prediction_id: str) -> Record | None:
        """The record of one prediction."""
        raw = cast(_Hash, self._redis.hgetall(record_key(kind, prediction_id)))
        return _record(kind, prediction_id, raw) if raw else None

    def look(self, refs: Sequence[tuple[Kind, str]]) -> list[Record | None]:
        """The records of many, in one round trip and without what is large in them: bodies and `kept`."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for ref in refs:
                pipeline.hmget(record_key(*ref), _SMALL)
            answers: list[list[bytes | None]] = pipeline.execute()
        found = [
            {name.encode(): value for name, value in zip(_SMALL, answer, strict=True) if value is not None}
            for answer in answers
        ]
        return [_record(*ref, raw) if raw else None for ref, raw in zip(refs, found, strict=True)]

    def newest(self) -> Iterator[Record]:
        """All records, the latest change first, read page by page; expired ones are passed over."""
        for first in itertools.count(0, PAGE):
            members = cast(list[bytes], self._redis.zrevrange(RECORDS, first, first + PAGE - 1))
            places = [split_member(member.decode()) for member in members]
            with self._redis.pipeline(transaction=False) as pipeline:
                for place in places:
                    pipeline.hgetall(record_key(*place))
                answers: list[_Hash] = pipeline.execute()
            yield from (_record(*place, raw) for place, raw in zip(places, answers, strict=True) if raw)
            if len(members) < PAGE:
                return


class LiveRecords:
    """What jobs do with records, over a group commit; each method is as that of `Records`."""

    def __init__(self, redis: "GroupCommit", records: Records) -> None:
        self._redis = redis
        self._records = records

    async def get(self, kind: Kind, prediction_id: str) -> Record | None:
        """The record of one prediction."""
        [raw] = await self._redis.pipeline(lambda pipe: pipe.hgetall(record_key(kind, prediction_id)))
        return _record(kind, prediction_id, raw) if raw else None

    async def is_removed(self, kind: Kind, prediction_id: str) -> bool:
        """Whether somebody had the prediction removed, so that it must not come back."""
        [removed] = await self._redis.commands(("EXISTS", removed_key(kind, prediction_id)))
        return bool(removed)

    async def keep(self, kind: Kind, prediction_id: str, kept: Mapping[str, Mapping[str, Any]]) -> None:
        """Remember by number how files ended, so that later attempts skip them."""
        await self._redis.script(KEEP, [record_key(kind, prediction_id)], _noted(kept))

    async def list_refused(self, kind: Kind, prediction_id: str, until: datetime) -> None:
        """Note that outputs were refused which a change of settings can mend until then."""
        member = record_member(kind, prediction_id)
        await self._redis.commands(("ZADD", REFUSED, until.timestamp(), member))

    async def move(
        self,
        kind: Kind,
        prediction_id: str,
        move: Move,
        now: datetime,
        fields: Mapping[str, str | int] | None = None,
    ) -> bool:
        """Make a legal move and set fields with it; whether it was legal."""
        keys, arguments = self._records.moving(kind, prediction_id, now, {move: fields or {}}, ())
        return bool(await self._redis.script(MOVE, keys, arguments) == 1)

    async def dispatch(
        self,
        kind: Kind,
        prediction_id: str,
        now: datetime,
        fields: Mapping[str, str | int],
        jobs: Sequence["Job"],
        *,
        source: Source = "webhook",
        quiet: bool = False,
    ) -> bool:
        """Note in one step that a prediction is stored, and that `jobs` are enqueued."""
        moves: dict[Move, Mapping[str, str | int]] = {Move.STORE: fields, Move.DISPATCH: {}}
        keys, arguments = self._records.moving(
            kind, prediction_id, now, moves, jobs, quiet=quiet, source=source
        )
        made = int(await self._redis.script(MOVE, keys, arguments))
        return _is_dispatched(made, kind, prediction_id)


def _is_dispatched(made: int, kind: Kind, prediction_id: str) -> bool:
    if made == _REMOVED:
        raise Removed(f"{kind} {prediction_id} was removed meanwhile")
    if made == _OVERRULED:
        raise Transient("overruled", "Replicate itself has told of it meanwhile")
    return made != _TO_BE_TOLD


def _noted(kept: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [item for number, file in kept.items() for item in (f"kept:{number}", json.dumps(dict(file)))]


def unconfirmed(error: RedisError) -> Transient:
    """What to raise when Redis did not confirm."""
    return Transient("redis_unavailable", f"Redis did not confirm: {type(error).__name__}")


def _require_small(arrival: Arrival) -> None:
    if len(arrival.body) > LARGE and arrival.job is not None:
        raise Permanent("body_too_large", "a body of this size has to be checked in before it is accepted")


def _score(arrival: Arrival, now: datetime) -> float | str:
    """When it will be asked for by its id; nothing for what Replicate does not know, or has ended."""
    if arrival.receipt.source == "cog":
        return ""
    return now.timestamp() + (ask_delay(0.0) if arrival.is_asked_for else SILENCE)


def _fields(arrival: Arrival, rank: str, now: datetime) -> list[str | bytes]:
    prediction, receipt = arrival.prediction, arrival.receipt
    fields: dict[str, str | bytes | None] = {
        "state": target(arrival.move),
        **described(prediction, receipt),
        "rank": rank,
        "updated_at": format_time(now),
        "quiet": "1" if receipt.quiet else None,
        "body": arrival.body if arrival.move is Move.FINISH and arrival.body_at is None else None,
        "body_at": arrival.body_at,
        "live": json.dumps(shown) if arrival.job is None and (shown := live(prediction)) else None,
    }
    return [item for name, value in fields.items() if value is not None for item in (name, value)]


def described(prediction: Prediction, receipt: Receipt) -> dict[str, str | None]:
    """The fields of a record that senders fill, each within its bound; the event itself stays whole."""
    query = json.dumps(receipt.query) if receipt.query else "{}"
    if len(query) > MAX_QUERY:
        log.warning("parameters of a webhook URL are too long and left out", extra={"id": prediction.id})
        query = json.dumps(shortened(receipt.query, MAX_QUERY))
    return {
        "status": prediction.status,
        "model": prediction.model and prediction.model[:MAX_MODEL],
        "received_at": format_time(receipt.received_at),
        "completed_at": _written(prediction.completed_at),
        "created_at": _written(prediction.created_at),
        "webhook_id": receipt.webhook_id,
        "source": receipt.source,
        "query": query,
    }


def _written(time: datetime | None) -> str | None:
    return None if time is None else format_time(time)


def _record(kind: Kind, prediction_id: str, raw: _Hash) -> Record:
    texts = {name.decode(): value.decode() for name, value in raw.items() if name not in _BODIES}
    receipt = Receipt(
        received_at=datetime.fromisoformat(texts["received_at"]),
        webhook_id=texts.get("webhook_id"),
        source=texts["source"],  # type: ignore[arg-type]
        query=json.loads(texts["query"]),
        context=json.loads(texts.get("context", "null")),
        parent=texts.get("parent"),
        quiet="quiet" in texts,
    )
    return Record(
        kind=kind,
        id=prediction_id,
        state=State(texts["state"]),
        status=texts["status"],
        model=texts.get("model"),
        received_at=receipt.received_at,
        updated_at=datetime.fromisoformat(texts["updated_at"]),
        body=raw.get(b"body"),
        body_at=texts.get("body_at"),
        receipt=receipt,
        files=int(texts.get("files", 0)),
        lost=int(texts.get("lost", 0)),
        error=texts.get("error"),
        created_at=parse_time(texts.get("created_at")),
        completed_at=parse_time(texts.get("completed_at")),
        live=json.loads(texts.get("live", "{}")),
        kept={name[5:]: json.loads(text) for name, text in texts.items() if name.startswith("kept:")},
    )
