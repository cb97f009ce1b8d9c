"""What reconciliation makes of what the API answers."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.core.context import context_keys, webhook_url
from app.core.names import Kind
from app.core.prediction import Prediction, from_object
from app.core.reconciling import (
    FARTHEST_LOOK,
    FIRST_LOOK,
    GRACE,
    OVERLAP,
    Found,
    Rules,
    by_urgency,
    due_at,
    expected_for,
    is_foreign,
    is_late,
    is_quiet,
    judge,
    mark_of,
    since,
    webhook_of,
)

NOW = datetime(2026, 3, 16, 12, 0, tzinfo=UTC)
START = NOW - timedelta(hours=10)
KEYS = context_keys([b"0123456789abcdef0123456789abcdef"])
OURS = "https://outkeep.example.com"
HOOK = f"{OURS}/webhooks/replicate"


def rules(**changes: Any) -> Rules:
    given: dict[str, Any] = {
        "mode": "all",
        "notify": True,
        "public_url": OURS,
        "own_url": "http://127.0.0.1:8000",
        "contexts": KEYS,
        "first_start": START,
    }
    return Rules(**{**given, **changes})


def ago(**parts: float) -> str:
    return (NOW - timedelta(**parts)).isoformat().replace("+00:00", "Z")


def prediction(kind: Kind = Kind.PREDICTION, **keys: Any) -> Prediction:
    return from_object({"id": "a", "status": "succeeded", "completed_at": ago(minutes=30), **keys}, kind)


@pytest.mark.parametrize(
    ("keys", "known", "found"),
    [
        ({}, True, Found.KNOWN),
        ({"status": "starting", "completed_at": None}, False, Found.RUNNING),
        ({"status": "processing", "completed_at": None}, False, Found.RUNNING),
        ({"completed_at": ago(seconds=GRACE - 1)}, False, Found.EXPECTED),
        ({"completed_at": ago(seconds=GRACE)}, False, None),
        ({"completed_at": ago(seconds=-20)}, False, None),
        ({"completed_at": ago(hours=10, minutes=59)}, False, None),
        ({"completed_at": ago(hours=11, minutes=1)}, False, Found.BYGONE),
        ({"completed_at": ago(hours=11, minutes=1)}, True, Found.KNOWN),
        ({"completed_at": None}, False, None),
        ({"completed_at": "nonsense"}, False, None),
        ({"status": "aborted", "completed_at": None}, False, None),
        ({"status": "canceled"}, False, None),
        ({"status": "invented"}, False, None),
        ({"status": "invented", "completed_at": None}, False, Found.RUNNING),
    ],
)
def test_each_item_of_a_list_is_judged(keys: dict[str, Any], *, known: bool, found: Found | None) -> None:
    assert judge(prediction(**keys), known, rules(), NOW) is found


@pytest.mark.parametrize(
    ("url", "changes", "ours"),
    [
        (HOOK, {}, True),
        (f"{HOOK}?order=17", {}, True),
        ("http://127.0.0.1:8000/webhooks/replicate", {}, True),
        ("https://old-tunnel.example.com/webhooks/replicate", {}, False),
        ("https://old-tunnel.example.com/webhooks/replicate", {"public_url": None}, True),
        (webhook_url("https://old-tunnel.example.com", Kind.PREDICTION, {"a": 1}, KEYS), {}, True),
        (f"{HOOK}/trainings", {}, False),
        (f"{OURS}.evil.example/webhooks/replicate", {}, False),
        ("https://example.com/hook", {}, False),
        ("https://example.com/hook?outkeep_context=bm8.bm8", {}, False),
        ("https://[/webhooks/replicate", {}, False),
    ],
)
def test_our_own_webhook_is_told_from_those_of_others(
    url: str, changes: dict[str, Any], *, ours: bool
) -> None:
    assert webhook_of(prediction(webhook=url), rules(**changes)).is_ours is ours


def test_query_and_context_come_out_of_the_url_that_an_object_names() -> None:
    url = webhook_url(OURS, Kind.TRAINING, {"order": "42"}, KEYS) + "&customId=1%202&flag=&tag=a&tag=b"
    named = webhook_of(prediction(Kind.TRAINING, webhook=url), rules())
    assert named.query == {"customId": "1 2", "flag": "", "tag": ["a", "b"]}
    assert named.context == {"order": "42"}


@pytest.mark.parametrize("webhook", [{}, {"webhook": None}, {"webhook": ""}, {"webhook": 7}])
def test_an_object_that_names_no_webhook_names_nothing(webhook: dict[str, Any]) -> None:
    named = webhook_of(prediction(**webhook), rules())
    assert (named.is_told, named.url, named.is_ours) == (bool(webhook), None, False)


@pytest.mark.parametrize(
    ("mode", "webhook", "has_record", "whole", "foreign"),
    [
        ("all", {}, False, True, False),
        ("all", {"webhook": "https://example.com/"}, False, True, False),
        ("known", {}, True, True, False),
        ("known", {}, False, False, False),
        ("known", {}, False, True, True),
        ("known", {"webhook": None}, False, False, True),
        ("known", {"webhook": HOOK}, False, False, False),
        ("known", {"webhook": HOOK}, False, True, False),
        ("known", {"webhook": "https://example.com/"}, False, False, True),
    ],
)
def test_only_what_is_known_may_be_wanted(
    mode: str, webhook: dict[str, Any], *, has_record: bool, whole: bool, foreign: bool
) -> None:
    wanted = rules(mode=mode)
    assert is_foreign(prediction(**webhook), wanted, has_record=has_record, whole=whole) is foreign


@pytest.mark.parametrize(
    ("keys", "changes", "quiet"),
    [
        ({}, {}, False),
        ({"webhook": HOOK}, {}, False),
        ({"webhook": "https://example.com/hook"}, {}, True),
        ({"completed_at": ago(hours=10, minutes=1)}, {}, True),
        ({"completed_at": None, "created_at": ago(hours=9)}, {}, False),
        ({"completed_at": None, "created_at": ago(hours=11)}, {}, True),
        ({"completed_at": None}, {}, True),
        ({}, {"notify": False}, True),
        ({"webhook": HOOK}, {"notify": False}, True),
    ],
)
def test_handlers_are_told_only_of_what_is_theirs(
    keys: dict[str, Any], changes: dict[str, Any], *, quiet: bool
) -> None:
    assert is_quiet(prediction(**keys), rules(**changes), web=False, has_record=False) is quiet


def test_what_the_web_site_made_is_quiet_unless_somebody_waits_for_it() -> None:
    assert is_quiet(prediction(), rules(), web=True, has_record=False)
    assert not is_quiet(prediction(), rules(), web=True, has_record=True)
    assert is_quiet(prediction(), rules(notify=False), web=False, has_record=True)
    assert not is_quiet(prediction(), rules(notify=False), web=False, has_record=True, is_own=True)


def test_the_first_pass_looks_back_for_what_can_still_be_kept_and_later_ones_to_the_mark() -> None:
    for kind in Kind:
        assert NOW - since(kind, None, NOW) == timedelta(seconds=FIRST_LOOK[kind])
        began = NOW - timedelta(minutes=1)
        assert NOW - since(kind, mark_of(began), NOW) == timedelta(seconds=60 + OVERLAP)
        assert NOW - since(kind, NOW - timedelta(days=400), NOW) == timedelta(seconds=FARTHEST_LOOK)


def test_what_is_deleted_next_comes_first() -> None:
    ended = {"gone": 61, "old": 59, "new": 2, "middle": 30}
    items = [prediction(id=name, completed_at=ago(minutes=age)) for name, age in ended.items()]
    items.append(prediction(id="removed", completed_at=ago(minutes=10), data_removed=True))

    assert [item.id for item in by_urgency(items, NOW)] == ["old", "middle", "new", "gone", "removed"]
    assert [item.id for item in items if is_late(item, NOW)] == ["gone", "removed"]


def test_what_ended_just_now_is_asked_for_when_its_webhook_should_have_come() -> None:
    one = prediction(completed_at=ago(seconds=20))

    assert expected_for(one, NOW) == GRACE - 20
    assert due_at(Found.EXPECTED, one, NOW) == NOW.timestamp() + GRACE - 20


@pytest.mark.parametrize("found", list(Found))
def test_only_what_has_not_ended_stays_awaited(found: Found) -> None:
    awaited = {Found.RUNNING, Found.EXPECTED, Found.FAILED}
    assert (due_at(found, prediction(), NOW) is not None) is (found in awaited)
