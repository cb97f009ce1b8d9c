"""The live view: one Redis hash per prediction, which expires and can be rebuilt from storage.

Fields of a record, all text: `state` (ours), `status` (Replicate's word), `rank` (orders progress), `model`,
`received_at`, `updated_at`, `webhook_id`, `source`, `query` and `context` (JSON), `body` (as received, until
stored), `error` (a code), `files` and `lost` (counts), and `kept:<number>` for each file that has already been
kept or lost while others are still tried.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq.job import Job

from app import queues
from app.core.errors import Transient
from app.core.lifecycle import Move, State, origins, target
from app.core.manifest import Receipt, format_time
from app.core.names import EVENTS, RECORDS, Kind, record_key, record_member, split_member
from app.core.prediction import Prediction

PAGE = 200
_Hash = Mapping[bytes, bytes]

_ACCEPT = """
-- KEYS: 1 record, 2 index of records, 3 job, 4 queue of the job, 5 RQ's set of queues
-- ARGV: 1 'finish' or 'progress', 2 rank, 3 member of the index, 4 ttl (s), 5 now (s), 6 job id, 7 channel,
--       8 state 'running', 9 state 'received', 10 how many arguments are fields of the record, then those,
--       then the fields of the job
local state = redis.call('HGET', KEYS[1], 'state')
local over = state and state ~= ARGV[8]
local outcome = 'accepted'
if over then
  outcome = ARGV[1] == 'finish' and 'duplicate' or 'stale'
elseif ARGV[1] == 'progress' then
  local rank = redis.call('HGET', KEYS[1], 'rank')
  outcome = 'progress'
  if rank and rank == ARGV[2] then outcome = 'duplicate' end
  if rank and rank > ARGV[2] then outcome = 'stale' end
end
local last = 10 + tonumber(ARGV[10])
if outcome == 'accepted' or outcome == 'progress' then
  redis.call('HSET', KEYS[1], unpack(ARGV, 11, last))
  redis.call('EXPIRE', KEYS[1], ARGV[4])
  redis.call('ZADD', KEYS[2], ARGV[5], ARGV[3])
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[5] - ARGV[4])
  redis.call('PUBLISH', ARGV[7], ARGV[3])
end
-- A repeat of an event whose job is gone while its record waits for one mends it.
local waits = outcome == 'accepted' or (ARGV[1] == 'finish' and state == ARGV[9])
if waits and redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('HSET', KEYS[3], unpack(ARGV, last + 1))
  redis.call('SADD', KEYS[5], KEYS[4])
  redis.call('RPUSH', KEYS[4], ARGV[6])
end
return outcome
"""

_MOVE = """
-- KEYS: 1 record, 2 index of records
-- ARGV: 1 new state, 2 ttl (s), 3 now (s), 4 member of the index, 5 channel, 6 number of legal states, those,
--       then fields to set
local state = redis.call('HGET', KEYS[1], 'state')
local first = 7 + tonumber(ARGV[6])
for i = 7, first - 1 do
  if state == ARGV[i] then
    redis.call('HSET', KEYS[1], 'state', ARGV[1], unpack(ARGV, first))
    if ARGV[1] == 'stored' then redis.call('HDEL', KEYS[1], 'body') end
    redis.call('EXPIRE', KEYS[1], ARGV[2])
    redis.call('ZADD', KEYS[2], ARGV[3], ARGV[4])
    redis.call('PUBLISH', ARGV[5], ARGV[4])
    return 1
  end
end
return 0
"""

_KEEP = """
-- KEYS: 1 record
-- ARGV: 1 ttl (s), then fields to set
-- A record that is gone stays gone: these fields alone would be none.
if redis.call('EXPIRE', KEYS[1], ARGV[1]) == 1 and #ARGV > 1 then
  redis.call('HSET', KEYS[1], unpack(ARGV, 2))
end
"""


class Accepted(StrEnum):
    """What became of a delivery in Redis."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    PROGRESS = "progress"
    STALE = "stale"


@dataclass(frozen=True)
class Arrival:
    """A verified and parsed delivery on its way in."""

    prediction: Prediction
    body: bytes
    receipt: Receipt
    job: Job | None
    """The persist job of a terminal event; None for progress."""


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
    receipt: Receipt
    files: int
    lost: int
    error: str | None
    kept: Mapping[str, dict[str, Any]]
    """How files ended that are not tried any more, by their number; see `Records.keep`."""


class Records:
    """Records over one Redis connection. Methods block; errors are redis-py's, except where said."""

    def __init__(self, connection: Redis, *, ttl: int) -> None:
        """Keep records for `ttl` seconds after their latest change."""
        self._redis = connection
        self._ttl = ttl
        self._accept = hashlib.sha1(_ACCEPT.encode(), usedforsecurity=False).hexdigest()
        self._move = connection.register_script(_MOVE)
        self._keep = connection.register_script(_KEEP)

    def accept(self, arrivals: Sequence[Arrival], now: datetime) -> list[Accepted]:
        """Record many deliveries and enqueue their jobs, in one round trip.

        Record and job of one delivery are written by one script, so no crash falls between them, and of
        any number of equal deliveries exactly one is `ACCEPTED`. Raises `Transient` when Redis did not
        confirm all of them: then each may or may not have been written, and sending it again is safe.
        """
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                # Loaded every time: asking whether Redis still has it would be a second round trip.
                pipeline.script_load(_ACCEPT)
                for arrival in arrivals:
                    self._add(pipeline, arrival, now)
                return [Accepted(outcome.decode()) for outcome in pipeline.execute()[1:]]
        except RedisError as error:
            raise Transient("redis_unavailable", f"Redis did not confirm: {type(error).__name__}") from error

    def _add(self, pipeline: Pipeline, arrival: Arrival, now: datetime) -> None:
        prediction, job = arrival.prediction, arrival.job
        move = Move.FINISH if job else Move.PROGRESS
        fields = _fields(arrival, move, now)
        member = record_member(prediction.kind, prediction.id)
        keys = [record_key(prediction.kind, prediction.id), RECORDS]
        job_fields: Sequence[str | bytes] = []
        if job is not None:
            queue = queues.queue(job.origin, self._redis)
            keys += [job.key, queue.key, queue.redis_queues_keys]
            job_fields = queues.fields(job)
        arguments = [
            move, prediction.progress_rank, member, self._ttl, now.timestamp(), job.id if job else "",
            EVENTS, State.RUNNING, State.RECEIVED, len(fields), *fields, *job_fields,
        ]  # fmt: skip
        pipeline.evalsha(self._accept, len(keys), *keys, *arguments)

    def move(
        self,
        kind: Kind,
        prediction_id: str,
        move: Move,
        now: datetime,
        fields: Mapping[str, str | int] | None = None,
    ) -> bool:
        """Make a legal move and set fields with it; whether it was legal. What is stored needs no body."""
        legal = [state for state in origins(move) if state is not None]
        pairs = [item for pair in {**(fields or {}), "updated_at": format_time(now)}.items() for item in pair]
        member = record_member(kind, prediction_id)
        moved = self._move(
            keys=[record_key(kind, prediction_id), RECORDS],
            args=[target(move), self._ttl, now.timestamp(), member, EVENTS, len(legal), *legal, *pairs],
        )
        return bool(moved)

    def keep(self, kind: Kind, prediction_id: str, kept: Mapping[str, Mapping[str, Any]]) -> None:
        """Remember by number how files ended, so that a later attempt skips them, and live for another `ttl`."""
        pairs = [item for number, file in kept.items() for item in (f"kept:{number}", json.dumps(dict(file)))]
        self._keep(keys=[record_key(kind, prediction_id)], args=[self._ttl, *pairs])

    def get(self, kind: Kind, prediction_id: str) -> Record | None:
        """The record of one prediction."""
        raw = cast(_Hash, self._redis.hgetall(record_key(kind, prediction_id)))
        return _record(kind, prediction_id, raw) if raw else None

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


def _fields(arrival: Arrival, move: Move, now: datetime) -> list[str | bytes]:
    prediction, receipt = arrival.prediction, arrival.receipt
    fields: dict[str, str | bytes | None] = {
        "state": target(move),
        "status": prediction.status,
        "rank": prediction.progress_rank,
        "model": prediction.model,
        "received_at": format_time(receipt.received_at),
        "updated_at": format_time(now),
        "webhook_id": receipt.webhook_id,
        "source": receipt.source,
        "query": json.dumps(dict(receipt.query)),
        "context": json.dumps(receipt.context),
        "parent": receipt.parent,
        "body": arrival.body if move is Move.FINISH else None,
    }
    return [item for name, value in fields.items() if value is not None for item in (name, value)]


def _record(kind: Kind, prediction_id: str, raw: _Hash) -> Record:
    texts = {name.decode(): value.decode() for name, value in raw.items() if name != b"body"}
    receipt = Receipt(
        received_at=datetime.fromisoformat(texts["received_at"]),
        webhook_id=texts.get("webhook_id"),
        source=texts["source"],  # type: ignore[arg-type]
        query=json.loads(texts["query"]),
        context=json.loads(texts["context"]),
        parent=texts.get("parent"),
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
        receipt=receipt,
        files=int(texts.get("files", 0)),
        lost=int(texts.get("lost", 0)),
        error=texts.get("error"),
        kept={name[5:]: json.loads(text) for name, text in texts.items() if name.startswith("kept:")},
    )
