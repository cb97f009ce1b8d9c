"""What stands beside the manifest about each handler: written, read back, and read when it is damaged."""

import json
from datetime import UTC, datetime

import pytest

from app.core import outcomes
from app.core.outcomes import Told

AT = datetime(2026, 3, 16, 10, 0, 0, 250_000, tzinfo=UTC)


@pytest.mark.parametrize(
    "told",
    [
        Told("delivered", 2, AT, None),
        Told("delivered", 2, AT, None, "child"),
        Told("dead", 10, AT, "status_500"),
        Told("off", 0, AT, "handler_off"),
        Told("off", 0, AT, None),
    ],
)
def test_an_outcome_is_read_as_it_was_written(told: Told) -> None:
    assert outcomes.read(json.dumps(outcomes.document("msg_1", told)).encode()) == told


def test_what_was_delivered_has_the_keys_of_the_contract() -> None:
    assert outcomes.document("msg_1", Told("delivered", 1, AT, None, "abc")) == {
        "webhook_id": "msg_1",
        "outcome": "delivered",
        "attempts": 1,
        "at": "2026-03-16T10:00:00.250Z",
        "child": "abc",
    }


def test_only_what_somebody_was_meant_to_be_told_is_a_dead_letter() -> None:
    assert Told("dead", 10, AT, "status_500").is_dead_letter
    assert Told("dead", 10, AT, None).is_dead_letter  # written before reasons were
    assert Told("off", 1, AT, "status_410").is_dead_letter
    assert not Told("off", 0, AT, None).is_dead_letter
    assert not Told("delivered", 1, AT, None).is_dead_letter


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"outcome": "dead"}',
        b'{"outcome": "dead", "attempts": 1, "at": "yesterday"}',
        b'{"outcome": "dead", "attempts": "1", "at": "2026-03-16T10:00:00Z"}',
        b'{"outcome": null, "attempts": 1, "at": "2026-03-16T10:00:00Z"}',
    ],
)
def test_a_damaged_outcome_is_none(data: bytes) -> None:
    assert outcomes.read(data) is None
