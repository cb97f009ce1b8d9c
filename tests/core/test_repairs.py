"""The rules of the sweep, as tables."""

import pytest

from app.core.lifecycle import (
    HALF_WRITTEN_AFTER,
    PATIENCE,
    STRAY_AFTER,
    Repair,
    State,
    is_half_written,
    is_stray_download,
    record_repair,
)
from app.core.names import Kind, claim_name

WEEK = 7 * 86400


@pytest.mark.parametrize("status", ["queued", "started", "scheduled", "deferred"])
@pytest.mark.parametrize("state", list(State))
def test_a_record_with_a_live_job_is_left_alone(state: State, status: str) -> None:
    assert record_repair(state, status, silent=WEEK) is None


@pytest.mark.parametrize("status", [None, "finished", "created", "a word of the future"])
def test_what_waits_without_a_job_gets_one(status: str | None) -> None:
    assert record_repair(State.RECEIVED, status, silent=PATIENCE) is Repair.JOB_MADE
    assert record_repair(State.STORED, status, silent=PATIENCE) is Repair.JOB_MADE


@pytest.mark.parametrize("status", ["failed", "stopped", "canceled"])
def test_what_waits_for_a_dead_letter_has_failed(status: str) -> None:
    assert record_repair(State.RECEIVED, status, silent=PATIENCE) is Repair.RECORD_FAILED


@pytest.mark.parametrize("state", [State.RUNNING, State.DISPATCHED, State.FAILED])
@pytest.mark.parametrize("status", [None, "failed", "finished"])
def test_what_waits_for_nothing_is_left_alone(state: State, status: str | None) -> None:
    assert record_repair(state, status, silent=WEEK) is None


def test_what_changed_within_a_minute_is_left_alone() -> None:
    assert record_repair(State.RECEIVED, None, silent=PATIENCE - 0.1) is None
    assert record_repair(State.RECEIVED, None, silent=-10) is None


@pytest.mark.parametrize(
    ("name", "age", "stray"),
    [
        ("fetch-abc.part", STRAY_AFTER + 1, True),
        ("upload-abc.part", STRAY_AFTER + 1, True),
        ("fetch-abc.part", STRAY_AFTER - 1, False),
        ("held.prediction.abc.0.d1e2", WEEK + 1, True),
        ("held.prediction.abc.0.d1e2", WEEK - 1, False),
        ("notes.txt", 10 * WEEK, False),
        ("fetch-abc", 10 * WEEK, False),
    ],
)
def test_downloads_that_belong_to_nobody_are_strays(name: str, age: float, *, stray: bool) -> None:
    assert is_stray_download(name, age, held_for=WEEK) is stray


@pytest.mark.parametrize(
    "name",
    [
        "output-0.png#1",
        "output.txt#12",
        "prediction.json#1",
        "told-gallery.json#3",
        f"{'0f' * 32}.json#1",
        claim_name(Kind.TRAINING, "a_b-c", "0f" * 32).rpartition("/")[2] + "#1",
    ],
)
def test_half_an_object_of_ours_goes_after_an_hour(name: str) -> None:
    assert is_half_written(name, HALF_WRITTEN_AFTER + 1)
    assert not is_half_written(name, HALF_WRITTEN_AFTER - 1)


@pytest.mark.parametrize("name", ["output-0.png", "holiday#1", "a#b", "output-0.png#", "#1", "notes.txt#1"])
def test_files_that_we_would_not_write_stay(name: str) -> None:
    assert not is_half_written(name, WEEK)
