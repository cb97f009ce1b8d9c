"""What pages say, from what the API answers."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.core.names import Kind
from app.maintain.replay import Failure
from app.web import models, views
from app.web.rendering import ago, policy, seconds, web_url

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
NONE = models.Waits(p50=None, p95=None)


def group(**changes: Any) -> models.Group:
    numbers = dict.fromkeys(("count", "succeeded", "failed", "lost", "untold", "files", "bytes"), 0)
    waits = {"completed_to_stored": NONE, "stored_to_told": NONE}
    return models.Group(**{"key": None, "predict_seconds": 0.0, **numbers, **waits, **changes})


def running(minutes: float | None) -> models.Running:
    expires_at = None if minutes is None else NOW + timedelta(minutes=minutes)
    empty = dict.fromkeys(models.Summary.model_fields)
    facts: dict[str, Any] = {
        "kind": Kind.PREDICTION, "id": "abc", "state": "received", "status": "succeeded", "source": "webhook",
        "received_at": NOW, "files": 0, "bytes": 0, "lost": 0, "told": [], "expires_at": expires_at,
    }  # fmt: skip
    return models.Running(summary=models.Summary(**{**empty, **facts}), live=None, updated_at=NOW)


@pytest.mark.parametrize(
    ("total", "under_way", "given_up", "tone", "text"),
    [
        ({"count": 412}, [], 0, "good", "All 412 predictions of the last day are kept and told."),
        ({"count": 1}, [], 0, "good", "The one prediction of the last day is kept and told."),
        (
            {"count": 9, "lost": 3, "untold": 4},
            [11.2, 50],
            2,
            "bad",
            "3 outputs lost, 2 deliveries given up, 2 not told yet, 2 not kept yet, first expires in 11 min.",
        ),
        ({"count": 9, "untold": 1}, [], 0, "run", "1 not told yet."),
        ({}, [None], 0, "run", "Nothing has ended in the last day. 1 under way."),
        ({}, [], 0, "good", "Nothing has ended in the last day."),
    ],
)
def test_one_sentence_says_how_it_stands(
    total: Mapping[str, int], under_way: list[float | None], given_up: int, tone: str, text: str
) -> None:
    said = views.truth(group(**total), [running(one) for one in under_way], given_up, NOW)

    assert (said.tone, said.text) == (tone, text)


def test_what_needs_somebody_comes_with_its_reason_a_button_and_the_command() -> None:
    failures = [Failure(Kind.PREDICTION, str(one), "gallery", "status_500", 9, None) for one in range(3)]
    found = views.needs(
        [*failures, Failure(Kind.PREDICTION, "x", None, "gone", 0, None)], [], [], group(lost=2)
    )

    assert [(one.title, one.command, one.action) for one in found] == [
        ("2 outputs were lost in the last day", "outkeep ls --lost", None),
        ("gallery missed 3 events", "outkeep replay --failed --handler gallery", "/failures/replay"),
        ("1 could not be kept", "outkeep replay --failed", "/failures/replay"),
    ]
    assert "status_500" in found[1].reason


def test_an_input_says_what_differs_from_the_parents() -> None:
    given = {"seed": 2, "prompt": "b", "same": [1], "new": True}
    found = views.items(given, {"seed": 1, "prompt": "b", "same": [1]}, {"/input/prompt": "/files/x"})

    assert [(one.key, one.text, one.before, one.is_changed) for one in found] == [
        ("prompt", "b", None, False),
        ("seed", "2", "1", True),
        ("same", "[\n  1\n]", None, False),
        ("new", "true", None, True),
    ]
    assert found[0].picture == "/files/x"


def test_a_form_changes_only_what_was_changed_in_it() -> None:
    keys, texts = ["a", "b", "c", "d"], ["yes", "yes", "", ""]

    assert views.changed(keys, ["x\r\ny", "new", "1", "[2]"], ["x\ny", "old", "1", "[1]"], texts) == {
        "b": "new",
        "d": [2],
    }
    with pytest.raises(ValueError, match="d: write it as JSON"):
        views.changed(["d"], ["nonsense"], ["1"], [""])


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("a.png", "picture"), ("a.mp4", "film"), ("a.mp3", "sound"), ("output.txt", "text"),
        ("a.json", "text"), ("a.svg", "file"), ("a.html", "file"), ("a.pdf", "file"), ("a.glb", "file"),
        ("a.js", "file"), ("a.bin", "file"), ("a.tiff", "file"),
    ],
)  # fmt: skip
def test_what_could_run_is_never_shown_but_named(name: str, word: str) -> None:
    assert views.shown_as(name) == word


@pytest.mark.parametrize(
    "text",
    ["javascript:alert(1)", " javascript:1", "data:text/html,x", "//evil", "http://", "http://[", None, 3],
)
def test_only_addresses_of_the_web_become_links(text: Any) -> None:
    assert web_url(text) is None
    assert web_url("HTTPS://example.com/a?b") == "HTTPS://example.com/a?b"


def test_the_policy_of_pages_allows_nothing_of_others_and_no_script_in_a_page() -> None:
    for said in (policy(), policy("https://bucket.example")):
        assert said.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "frame-ancestors 'none'; base-uri 'none'; form-action 'self'" in said
        assert "unsafe" not in said
        assert "*" not in said
    assert "img-src 'self' https://bucket.example; media-src 'self' https://bucket.example" in said


@pytest.mark.parametrize(
    ("span", "before", "length"),
    [
        (2, "just now", "2.0 s"), (65, "1 min ago", "1 min 5 s"), (7260, "2 h ago", "2 h 1 min"),
        (-600, "in 10 min", "0.0 s"), (40 * 86400, "22 Mar 2026", "40 d"),
    ],
)  # fmt: skip
def test_times_are_told_as_people_do(span: float, before: str, length: str) -> None:
    assert ago(NOW - timedelta(seconds=span), NOW) == before
    assert seconds(span) == length
