"""What the JSON API answers, and what pages render: the same values. Times are RFC 3339 in UTC."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from app.core.findings import Level
from app.core.lifecycle import State
from app.core.manifest import Source, format_time
from app.core.names import Kind
from app.core.prediction import parse_time

Time = Annotated[datetime, PlainSerializer(format_time, return_type=str, when_used="json")]
Outcome = Literal["pending", "delivered", "dead", "off", "suppressed"]
"""How a delivery to a handler stands. `off`: that is switched off; `suppressed`: nobody was to be told."""


class Answer(BaseModel):
    """Every answer is closed: a key that is not described is never sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Told(Answer):
    """How the delivery to one handler stands. `child` is the follow-up prediction that it created."""

    handler: str
    outcome: Outcome
    attempts: int = 0
    at: Time | None = None
    error: str | None = None
    child: str | None = None


class Picture(Answer):
    """The first file that is a picture, else the first film or sound."""

    name: str
    media_type: str
    url: str


class Summary(Answer):
    """One prediction or training in a list. `prompt` and `text` are no more than begins."""

    kind: Kind
    id: str
    state: State
    status: str
    model: str | None
    version: str | None
    source: Source
    parent: str | None
    received_at: Time
    created_at: Time | None
    completed_at: Time | None
    stored_at: Time | None
    expires_at: Time | None = Field(description="when Replicate deletes what is not kept yet")
    files: int
    bytes: int
    lost: int
    picture: Picture | None
    prompt: str | None
    text: str | None
    error: str | None
    told: list[Told]
    predict_seconds: float | None


class Page(Answer):
    """A part of a list, the newest first. `next` is the cursor of the part that follows."""

    results: list[Summary]
    next: str | None


class File(Answer):
    """A stored file; `url` is good for at least seven days."""

    name: str
    url: str
    pointer: str
    source: str | None
    media_type: str | None
    size: int
    sha256: str
    encoding: str | None
    is_input: bool


class Loss(Answer):
    """A file that could not be kept."""

    pointer: str
    source: str | None
    error: str
    is_input: bool


class Relative(Answer):
    """A parent or a child. `handler` made the child; None: somebody ran it again."""

    id: str
    handler: str | None


class Lineage(Answer):
    """What a prediction follows, and what followed it."""

    parent: Relative | None
    children: list[Relative]


class Live(Answer):
    """What is known of a prediction that still runs: the ends of its text and of its logs, cut."""

    percent: int | None
    text: str | None
    logs: str | None


class RecordView(Answer):
    """The live view in Redis; it expires, the manifest does not."""

    state: State
    status: str
    model: str | None
    source: Source
    received_at: Time
    updated_at: Time
    files: int
    lost: int
    error: str | None
    live: Live | None


class Whole(Answer):
    """All that is known of one prediction. `manifest` is the document in storage; None: not kept yet."""

    kind: Kind
    id: str
    record: RecordView | None
    manifest: dict[str, Any] | None
    files: list[File]
    lost: list[Loss]
    told: list[Told]
    lineage: Lineage
    expires_at: Time | None


class Attempt(Answer):
    """One attempt to tell a handler. `error` is a code, None for success."""

    at: Time | None
    status: int | None
    error: str | None
    detail: str
    milliseconds: int


class HandlerAttempts(Answer):
    """The attempts of one job: the first notification, or replay number `replay`.

    `count` may be more than are listed: RQ forgets a job that has ended well, and the outcome file stays.
    """

    handler: str
    replay: int | None
    outcome: Outcome
    count: int
    attempts: list[Attempt]
    next_at: Time | None


class Attempts(Answer):
    """Every attempt of every handler."""

    results: list[HandlerAttempts]


class LastAttempt(Answer):
    """How the latest attempt of a handler ended."""

    at: Time
    status: int | None
    error: str | None
    detail: str
    milliseconds: int


class Result(Answer):
    """One of the latest results of a handler."""

    kind: Kind
    id: str
    outcome: Outcome
    at: Time
    error: str | None


class HandlerView(Answer):
    """How a handler fares. `target` is a host, a function or a model; `waiting` and `dead` are counts."""

    name: str
    state: Literal["on", "slow", "off", "unknown"]
    type: Literal["url", "job", "predict", "unknown"]
    target: str
    off_since: Time | None
    waiting: int
    dead: int
    delivered_today: int
    last: LastAttempt | None
    results: list[Result]


class Handlers(Answer):
    """The handlers in the order of the file, then those that only jobs still name."""

    results: list[HandlerView]


class Enabled(Answer):
    """`was_off`: whether that changed anything. `dead`: dead letters that a replay would send."""

    name: str
    was_off: bool
    dead: int


class Tested(Answer):
    """What came back for a sample. `error` is a code; None: the handler took it."""

    name: str
    status: int | None
    error: str | None
    detail: str
    milliseconds: int


class Check(Answer):
    """One line of `outkeep doctor`."""

    level: Level
    check: str
    detail: str


class Checks(Answer):
    """`ok`: nothing fails, be it that something is warned of."""

    ok: bool
    findings: list[Check]


class Waits(Answer):
    """Seconds; None: nothing to judge by."""

    p50: float | None
    p95: float | None


class Group(Answer):
    """The sums of one group; `key` is the model or the day, None in the total or for an unknown model."""

    key: str | None
    count: int
    succeeded: int
    failed: int
    lost: int
    untold: int
    files: int
    bytes: int
    predict_seconds: float
    completed_to_stored: Waits
    stored_to_told: Waits


class CatalogState(Answer):
    """`building`: what is shown is not all yet; `read` predictions were read so far."""

    state: Literal["ready", "building", "waiting"]
    read: int
    entries: int


class Stats(Answer):
    """What came since `since`. `quarantined` counts deliveries that could not be used."""

    since: Time
    by: Literal["model", "day"]
    total: Group
    groups: list[Group]
    catalog: CatalogState


class Replayed(Answer):
    """What became of one thing that was asked for."""

    outcome: Literal["enqueued", "hastened", "waiting", "refused"]
    handler: str | None
    reason: str | None


class ReplayAnswer(Answer):
    """What a replay of one prediction has set going."""

    kind: Kind
    id: str
    results: list[Replayed]


class Rerun(Answer):
    """The prediction that was created."""

    kind: Kind
    id: str
    status: str
    parent: str


class Album(Answer):
    """Chosen outputs behind a link; `url` is told only when it is made."""

    id: str
    until: Time
    count: int
    url: str | None = None


class AlbumList(Answer):
    """Those that are open."""

    results: list[Album]


class Removed(Answer):
    """What was removed. `running` jobs end by themselves, and what comes of them is removed then."""

    kind: Kind
    id: str
    objects: int
    bytes: int
    jobs: int
    running: int


class BulkPlan(Answer):
    """How many a bulk replay would do again."""

    dry_run: Literal[True] = True
    count: int


class BulkReplay(Answer):
    """A bulk replay under way or ended."""

    id: str
    state: Literal["running", "done", "canceled", "failed", "interrupted"]
    count: int
    done: int
    refused: int
    started_at: Time
    updated_at: Time
    error: str | None


class Problem(Answer):
    """RFC 9457. `code` is stable; `parameters` names what is wrong."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    parameters: list[str] = []


class Running(Answer):
    """What a dashboard shows as under way: not in a list of the API."""

    summary: Summary
    live: Live | None
    updated_at: Time


def _flag(value: object) -> bool:
    if value not in {"true", "false"}:
        raise ValueError("write true or false")
    return value == "true"


def _number(value: object) -> int:
    if isinstance(value, str) and not (value.isascii() and value.isdecimal() and len(value) < 4):  # noqa: PLR2004
        raise ValueError("write a whole number")
    return int(str(value))


def _moment(value: object) -> str:
    if not isinstance(value, str) or not (_DURATION.fullmatch(value) or parse_time(value)):
        raise ValueError("write 24h, or 2026-03-16T10:00:00Z")
    return value


_DURATION = re.compile(r"[1-9][0-9]{0,3}[smhdw]", re.ASCII)
Flag = Annotated[bool, BeforeValidator(_flag)]
Limit = Annotated[int, Field(ge=1, le=200), BeforeValidator(_number)]
Text = Annotated[str, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Moment = Annotated[
    str,
    BeforeValidator(_moment),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^{_DURATION.pattern}$"},
                {"type": "string", "format": "date-time"},
            ],
            "description": "a duration before now, such as 24h, or a time",
        }
    ),
]


class ListQuery(Answer):
    """Parameters of a list: all of them narrow it down, but for `limit` and `cursor`.

    In `q` words are joined by *and* and quotes make a phrase; anything else in it is text.
    """

    q: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    status: Text | None = None
    state: State | None = None
    model: Text | None = Field(None, description="`owner/name`; `*` stands for anything")
    handler: Name | None = None
    lost: Flag = False
    untold: Flag = False
    parent: Name | None = None
    since: Moment | None = None
    until: Moment | None = None
    limit: Limit = 50
    cursor: Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[A-Za-z0-9_.-]+$")] | None = None


class StatsQuery(Answer):
    """Parameters of the sums."""

    since: Moment = "24h"
    by: Literal["model", "day"] = "model"


class NoQuery(Answer):
    """Routes that take no parameters refuse all."""


class ReplayBody(Answer):
    """Which handler is told again; None: all that want it."""

    handler: Name | None = None


class RerunBody(Answer):
    """`input`: keys that replace those of the original."""

    input: dict[str, Any] = {}


Ids = Annotated[list[Name], Field(max_length=200)]


class AlbumBody(Answer):
    """What is shown, for how many days, and whether the prompts are shown."""

    predictions: Ids = []
    trainings: Ids = []
    days: Annotated[int, Field(ge=1, le=365)] = 7
    prompts: bool = False


class BulkBody(Answer):
    """What is done again: all that has failed, or all that was stored since a moment; one of them is needed.

    `since` is a duration before now such as `24h`, or a time.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["failed"], "properties": {"failed": {"const": True}}},
                {"required": ["since"], "properties": {"since": {"type": "string"}}},
            ]
        }
    )

    failed: bool = False
    since: Moment | None = None
    handler: Name | None = None
    model: Text | None = None
    dry_run: bool = False
