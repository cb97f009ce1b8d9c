import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import OutkeepError, Permanent, Rejected, Transient
from app.core.policy import (
    HOUR,
    LATE_ATTEMPT,
    MAX_RETRY_AFTER,
    MENDED_BY_SETTING,
    NOTIFY_DELAYS,
    PERSIST_MARGIN,
    RETRIED_WITHIN_THE_HOUR,
    attempt_timeout,
    fetch_delay,
    keep_until,
    notify_delay,
    store_delay,
)

RECEIVED = datetime(2025, 6, 9, 7, 5, 42, tzinfo=UTC)
ONE_HOUR = timedelta(hours=1)

JITTER = st.floats(0, 1, exclude_max=True)
ATTEMPT = st.integers(1, 10**6)
LEFT = st.floats(0, HOUR, exclude_min=True)
ASKED = st.none() | st.floats()


def delay(
    error: OutkeepError, *, attempt: int = 1, remaining: float = HOUR, jitter: float = 0.5
) -> float | None:
    return fetch_delay(error, attempt=attempt, remaining=remaining, jitter=jitter)


def busy(retry_after: float | None = None) -> Transient:
    return Transient("busy", "", retry_after=retry_after)


@pytest.mark.parametrize(
    "lead",
    [
        timedelta(0),
        timedelta(seconds=1),
        timedelta(hours=2),
        -timedelta(minutes=5),
        timedelta(minutes=59, seconds=59),
    ],
)
def test_the_hour_runs_from_the_end_of_a_prediction_when_its_clock_is_plausible(lead: timedelta) -> None:
    assert keep_until(RECEIVED - lead, RECEIVED) == RECEIVED - lead + ONE_HOUR


@pytest.mark.parametrize(
    "completed_at",
    [
        None,
        RECEIVED - timedelta(hours=2, microseconds=1),
        RECEIVED + timedelta(minutes=5, microseconds=1),
        RECEIVED - timedelta(days=3650),
        RECEIVED + timedelta(days=1),
        datetime(2, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    ],
)
def test_otherwise_it_runs_from_the_receipt(completed_at: datetime | None) -> None:
    assert keep_until(completed_at, RECEIVED) == RECEIVED + ONE_HOUR


@settings(deadline=None)
@given(st.none() | st.datetimes(timezones=st.just(UTC)))
def test_a_wrong_clock_shifts_the_end_by_two_hours_at_most(completed_at: datetime | None) -> None:
    ends = keep_until(completed_at, RECEIVED)
    assert -ONE_HOUR <= ends - RECEIVED <= ONE_HOUR + timedelta(minutes=5)


@pytest.mark.parametrize("remaining", [-1e9, -1.0, 0.0, 100.0, 480.0, 481.0, 3600.0, 3900.0])
def test_an_attempt_ends_before_its_job_does(remaining: float) -> None:
    timeout = attempt_timeout(remaining)
    assert timeout >= max(remaining, LATE_ATTEMPT)
    assert timeout < max(remaining, 0.0) + PERSIST_MARGIN


@pytest.mark.parametrize(
    "error",
    [
        Permanent("gone", ""),
        Permanent("too_large", ""),
        Permanent("data_uri_malformed", ""),
        Permanent("too_many_files", ""),
        Rejected("anything", ""),
        OutkeepError("anything", ""),
    ],
)
@pytest.mark.parametrize("attempt", [1, 2, 100])
def test_what_time_cannot_heal_is_lost_at_once(error: OutkeepError, attempt: int) -> None:
    assert delay(error, attempt=attempt) is None


@pytest.mark.parametrize("code", sorted(MENDED_BY_SETTING))
def test_nothing_waits_for_what_only_the_operator_can_change(code: str) -> None:
    assert delay(Permanent(code, ""), attempt=1, remaining=3600.0) is None


@pytest.mark.parametrize("attempt", [1, 2, 100])
@pytest.mark.parametrize("code", sorted(RETRIED_WITHIN_THE_HOUR))
def test_what_may_heal_by_itself_is_tried_for_the_whole_hour(code: str, attempt: int) -> None:
    error = Permanent(code, "")
    assert delay(error, attempt=attempt, remaining=1.0) is not None
    assert delay(error, attempt=attempt, remaining=0.0) is None


def test_a_refused_host_can_be_mended() -> None:
    assert "host_refused" in MENDED_BY_SETTING


@pytest.mark.parametrize(
    ("age", "attempt", "again"),
    [
        (-200.0, 1, True),
        (0.0, 1, True),
        (30.0, 1, True),
        (59.0, 1, True),
        (61.0, 1, False),
        (1800.0, 1, False),
        (3601.0, 1, False),
        (4.0, 2, True),
        (62.0, 2, True),
        (9.0, 3, False),
        (9.0, 100, False),
    ],
)
@pytest.mark.parametrize("jitter", [0.0, 0.999])
def test_a_404_soon_after_the_end_is_asked_for_three_times(
    age: float, attempt: int, jitter: float, *, again: bool
) -> None:
    wait = delay(Permanent("not_found", ""), attempt=attempt, remaining=HOUR - age, jitter=jitter)
    assert (wait is not None) == again


def test_the_three_times_of_a_404_are_within_about_ten_seconds() -> None:
    for jitter in (0.0, 0.999):
        waits = [delay(Permanent("not_found", ""), attempt=n, remaining=HOUR, jitter=jitter) for n in (1, 2)]
        assert 5 < sum(wait or 0 for wait in waits) < 8  # RQ adds up to a second to each


def test_a_forbidden_file_is_tried_once_more() -> None:
    assert delay(Transient("forbidden", "")) is not None
    assert delay(Transient("forbidden", ""), attempt=2) is None


@pytest.mark.parametrize(
    ("attempt", "base"), [(1, 2), (2, 4), (3, 8), (6, 64), (7, 120), (8, 120), (10**6, 120)]
)
def test_waits_double_up_to_two_minutes_and_are_spread(attempt: int, base: float) -> None:
    assert delay(busy(), attempt=attempt, jitter=0.0) == base / 2
    assert delay(busy(), attempt=attempt, jitter=0.5) == base * 0.75


@settings(deadline=None)
@given(ATTEMPT, LEFT, JITTER, ASKED)
def test_a_wait_never_leads_past_the_hour_nor_below_zero(
    attempt: int, remaining: float, jitter: float, asked: float | None
) -> None:
    wait = delay(busy(asked), attempt=attempt, remaining=remaining, jitter=jitter)
    assert wait is not None
    assert 0 < wait <= remaining


@settings(deadline=None)
@given(ATTEMPT, st.floats(max_value=0, allow_nan=False), JITTER, ASKED)
def test_after_the_hour_no_file_is_tried_again(
    attempt: int, remaining: float, jitter: float, asked: float | None
) -> None:
    assert delay(busy(asked), attempt=attempt, remaining=remaining, jitter=jitter) is None
    assert delay(Permanent("host_refused", ""), attempt=attempt, remaining=remaining, jitter=jitter) is None


@pytest.mark.parametrize(
    ("asked", "wait"),
    [
        (5.0, 5.0),
        (0.0, 1.5),
        (-1.0, 1.5),
        (math.nan, 1.5),
        (-math.inf, 1.5),
        (1e9, 600.0),
        (math.inf, 600.0),
        (None, 1.5),
    ],
)
def test_what_the_host_asks_for_is_honoured_within_the_hour(asked: float | None, wait: float) -> None:
    assert delay(busy(asked), remaining=600.0) == wait


@pytest.mark.parametrize(("attempt", "base"), [(0, 2), (1, 4), (2, 8), (7, 256), (8, 300), (10**6, 300)])
def test_waits_for_our_own_storage_double_up_to_five_minutes_and_are_spread(
    attempt: int, base: float
) -> None:
    assert store_delay(attempt=attempt, jitter=0.0) == base / 2
    assert store_delay(attempt=attempt, jitter=0.5) == base * 0.75


@settings(deadline=None)
@given(ATTEMPT, JITTER)
def test_our_own_storage_is_tried_without_end_every_five_minutes_at_least(
    attempt: int, jitter: float
) -> None:
    assert 1 < store_delay(attempt=attempt, jitter=jitter) <= 300
    assert store_delay(attempt=attempt + 1, jitter=jitter) >= store_delay(attempt=attempt, jitter=jitter)


def test_a_handler_is_told_after_the_waits_of_the_contract() -> None:
    minute, hour = 60, 3600
    contract = (5, 5 * minute, 30 * minute, *(hours * hour for hours in (2, 5, 10, 14, 20, 24)))
    waits = [notify_delay(attempt=attempt, retry_after=None, jitter=0.5) for attempt in range(1, 10)]
    assert waits == pytest.approx(contract)
    assert contract == NOTIFY_DELAYS


@settings(deadline=None)
@given(st.integers(1, 9), JITTER)
def test_a_wait_is_spread_by_a_tenth_at_most(attempt: int, jitter: float) -> None:
    wait = notify_delay(attempt=attempt, retry_after=None, jitter=jitter)
    assert wait is not None
    assert abs(wait / NOTIFY_DELAYS[attempt - 1] - 1) < 0.1000001


@settings(deadline=None)
@given(st.integers(10, 10**6), ASKED, JITTER)
def test_the_tenth_failure_is_the_last(attempt: int, asked: float | None, jitter: float) -> None:
    assert notify_delay(attempt=attempt, retry_after=asked, jitter=jitter) is None


@settings(deadline=None)
@given(st.integers(1, 9), ASKED, JITTER)
def test_a_handler_can_ask_for_a_day_at_most_and_for_no_less_than_the_schedule(
    attempt: int, asked: float | None, jitter: float
) -> None:
    wait = notify_delay(attempt=attempt, retry_after=asked, jitter=jitter)
    plain = notify_delay(attempt=attempt, retry_after=None, jitter=jitter)
    assert wait is not None
    assert plain is not None
    assert plain <= wait <= max(plain, MAX_RETRY_AFTER)


@pytest.mark.parametrize(
    ("asked", "wait"),
    [(60.0, 60.0), (1.0, 5.0), (-5.0, 5.0), (math.nan, 5.0), (1e9, 86400.0), (math.inf, 86400.0)],
)
def test_what_a_handler_asks_for_is_honoured_within_a_day(asked: float, wait: float) -> None:
    assert notify_delay(attempt=1, retry_after=asked, jitter=0.5) == pytest.approx(wait)
