"""What reconciliation makes of the API's answers: rules over plain values. Ages and waits are in seconds."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from app.core.context import ContextKeys, Query, split_query, webhook_path
from app.core.names import Kind
from app.core.policy import HOUR, LATEST_ASK, ask_delay
from app.core.prediction import Prediction

OVERLAP = 600.0
"""How far a pass looks behind the begin of the last complete one: clocks differ, and a list may lag."""

GRACE = 90.0
"""For so long after its end a prediction is left to its webhook, which can tell what the API does not: its
query. Replicate tries for about a minute."""

SILENCE = 600.0
"""After so long without a word, what had not ended is asked for by its id."""

FIRST_LOOK: Mapping[Kind, float] = {Kind.PREDICTION: 12 * 3600.0, Kind.TRAINING: 7 * 86400.0}
"""How far the first pass looks back: what was created before that, and ended just now, ran for longer."""

FARTHEST_LOOK = 7 * 86400.0
"""A pass after a long absence looks no farther back: all that it could do is to list what is lost."""

_WEB = "web"


class Found(StrEnum):
    """What a prediction or training turned out to be. The name stands in logs, counts and answers."""

    NEW = "new"
    """It had ended and never arrived; now it is kept like any other."""
    LATE = "late"
    """The same, but its hour has passed: what cannot be kept any more is named as lost."""
    KNOWN = "known"
    """It is here already."""
    RUNNING = "running"
    """It has not ended."""
    EXPECTED = "expected"
    """It ended just now: its webhook may still come. Or a job that perhaps created it will find it."""
    BYGONE = "bygone"
    """Its data was gone before Outkeep first ran."""
    FOREIGN = "foreign"
    """Only what we know is wanted, and this is none of ours."""
    ABSENT = "absent"
    """The API does not know it any more."""
    UNREADABLE = "unreadable"
    """What the API says of it cannot be used."""
    FAILED = "failed"
    """The API fails for this one; it is asked again."""


TAKEN = frozenset({Found.NEW, Found.LATE})
"""What was accepted."""
SEEN_AGAIN = frozenset({Found.KNOWN, Found.RUNNING, Found.EXPECTED})
"""What each pass meets again, so that to count it says nothing."""


@dataclass(frozen=True)
class Rules:
    """What is wanted, and how our own webhooks are told from those of others."""

    mode: Literal["all", "known"]
    notify: bool
    """Whether handlers may be told of what was found."""
    public_url: str | None
    own_url: str
    contexts: ContextKeys
    first_start: datetime


@dataclass(frozen=True)
class Named:
    """The webhook that an object names: `url` None when it names none, or when the key is absent."""

    is_told: bool
    """Whether the key is there: recorded objects often lack it."""
    url: str | None
    is_ours: bool = False
    query: Query = field(default_factory=dict)
    context: Any = None


def webhook_of(prediction: Prediction, rules: Rules) -> Named:
    """What a prediction says of its webhook."""
    url = prediction.raw.get("webhook")
    if not isinstance(url, str) or not url:
        return Named("webhook" in prediction.raw, None)
    try:
        parts = urlsplit(url)
        given = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return Named(is_told=True, url=url)
    query, context = split_query(given, rules.contexts)
    ours = context is not None or (
        parts.path == webhook_path(prediction.kind)
        # Without an address of our own, any tunnel may lead to us.
        and (rules.public_url is None or url.startswith((f"{rules.public_url}/", f"{rules.own_url}/")))
    )
    return Named(is_told=True, url=url, is_ours=ours, query=query if ours else {}, context=context)


def since(kind: Kind, mark: datetime | None, now: datetime) -> datetime:
    """From which time of creation a pass has to look; `mark` is what the last complete one left."""
    if mark is None:
        return now - timedelta(seconds=FIRST_LOOK[kind])
    return max(mark, now - timedelta(seconds=FARTHEST_LOOK))


def mark_of(began: datetime) -> datetime:
    """What a complete pass leaves for the next one. What it saw running is asked for by id."""
    return began - timedelta(seconds=OVERLAP)


def judge(item: Prediction, known: bool, rules: Rules, now: datetime) -> Found | None:  # noqa: FBT001
    """What an item of a list is; None: its object must be fetched to tell, or to be kept.

    `known`: whether it is here already, past running.
    """
    if known:
        return Found.KNOWN
    if not item.is_terminal:
        return Found.RUNNING
    if expected_for(item, now) > 0:
        return Found.EXPECTED
    ended = item.completed_at
    if ended is not None and ended + timedelta(seconds=HOUR) < rules.first_start:
        return Found.BYGONE
    return None


def is_foreign(prediction: Prediction, rules: Rules, *, has_record: bool, whole: bool) -> bool:
    """Whether a prediction is none of ours where only those are wanted; `whole`: it is no item of a list."""
    if rules.mode == "all" or has_record:
        return False
    named = webhook_of(prediction, rules)
    return not named.is_ours and (named.is_told or whole)


def expected_for(prediction: Prediction, now: datetime) -> float:
    """For how long a prediction that ended is still left to its webhook."""
    ended = prediction.completed_at
    if ended is None or ended > now:  # a clock that is ahead must not make us wait for ever
        return 0.0
    return max(0.0, GRACE - (now - ended).total_seconds())


def due_at(found: Found, prediction: Prediction | None, now: datetime) -> float | None:
    """When one that was not created here is asked for by its id (Unix seconds); None: not any more."""
    if found is Found.EXPECTED and prediction is not None:
        return now.timestamp() + expected_for(prediction, now)
    return now.timestamp() + SILENCE if found in {Found.RUNNING, Found.FAILED} else None


def is_quiet(
    prediction: Prediction, rules: Rules, *, web: bool, has_record: bool, is_own: bool = False
) -> bool:
    """Whether handlers are not told of a prediction that was found.

    `web`: it was made on the web site. `has_record`: it was known before, so somebody waits for it.
    `is_own`: we have created it ourselves.
    """
    if is_own:
        return False
    if not rules.notify:
        return True
    if has_record:
        return False
    ended = prediction.completed_at or prediction.created_at
    named = webhook_of(prediction, rules)
    names_another = named.url is not None and not named.is_ours
    return web or names_another or ended is None or ended < rules.first_start


def is_late(prediction: Prediction, now: datetime) -> bool:
    """Whether its hour has passed."""
    ended = prediction.completed_at
    removed = prediction.raw.get("data_removed") is True
    return removed or (ended is not None and now - ended > timedelta(seconds=HOUR))


def is_from_web(item: Prediction) -> bool:
    """Whether an item of a list was made on the web site; single objects do not tell."""
    return item.raw.get("source") == _WEB


def in_brief(item: Prediction) -> Prediction:
    """An item of a list with no more than decides when it is fetched, since there may be very many."""
    kept = ("id", "status", "created_at", "completed_at", "data_removed", "source")
    return replace(item, raw={key: item.raw[key] for key in kept if key in item.raw})


def by_urgency(items: Sequence[Prediction], now: datetime) -> list[Prediction]:
    """What is deleted next comes first; what is deleted already comes last."""

    def key(item: Prediction) -> tuple[bool, float]:
        ended = item.completed_at
        return is_late(item, now), ended.timestamp() if ended else 0.0

    return sorted(items, key=key)


class Origin(StrEnum):
    """Where it was made, as far as that decides anything."""

    ELSEWHERE = "elsewhere"
    """With the token, by whatever program: a webhook may come."""
    WEB = "web"
    """On the web site."""
    HERE = "here"
    """By us, without a webhook: nothing tells of its end but asking for it."""


class Watched(NamedTuple):
    """One of them."""

    kind: Kind
    id: str
    origin: Origin


def asked_again_in(found: Found, age: float | None) -> float | None:
    """After how many seconds something created here is asked for again; None: not any more.

    `age` (seconds) is since its creation; None where no record knows it.
    """
    # What was created just now may not be known to every server of the API.
    too_new = found is Found.ABSENT and age is not None and age < SILENCE
    if found in {Found.RUNNING, Found.FAILED} or too_new:
        return LATEST_ASK if age is None else ask_delay(age)
    return None


SOUGHT_FOR = HOUR - 900
"""Seconds after its end for which a prediction may wait for the job that created it; files live an hour."""


def fingerprint(given: Any) -> str:
    """The same for two inputs that are the same JSON, however they are written."""
    text = json.dumps(_plain(given), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def may_wait(prediction: Prediction, now: datetime) -> bool:
    """Whether a prediction that ended may be left to the job that perhaps created it.

    Not one that names a webhook: that says itself what it follows.
    """
    ended = prediction.completed_at
    return (
        not prediction.raw.get("webhook")
        and ended is not None
        and now < ended + timedelta(seconds=SOUGHT_FOR)
    )


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value
