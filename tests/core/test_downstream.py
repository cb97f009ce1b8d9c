"""The share of a handler, and what becomes of one that does not answer."""

import pytest

from app.core.shares import (
    LATEST,
    LATEST_PROBED,
    PROBE_EVERY,
    SOONEST,
    TIMEOUTS,
    Downstream,
    share_of,
)


def begin(downstream: Downstream, now: float, count: int = 1) -> None:
    for _ in range(count):
        assert downstream.ask(now) is None


def silent(downstream: Downstream, *, times: int = TIMEOUTS) -> float:
    """Let attempts of 30 s end in silence one after the other; when the last one ended."""
    for number in range(times):
        begin(downstream, number * 30.0)
        downstream.ended(number * 30.0, number * 30.0 + 30, answered=False, timed_out=True)
    return times * 30.0


@pytest.mark.parametrize(("slots", "share"), [(1, 1), (3, 1), (4, 1), (8, 2), (64, 16), (100, 25)])
def test_a_quarter_of_the_slots_belongs_to_one_handler_and_always_one(slots: int, share: int) -> None:
    assert share_of(slots) == share


def test_a_job_over_the_share_is_put_back_until_an_attempt_ends() -> None:
    downstream = Downstream(2)
    begin(downstream, 0, 2)
    assert downstream.ask(0) == SOONEST
    downstream.ended(0, 1, answered=True, timed_out=False)
    begin(downstream, 1)


def test_jobs_come_again_as_fast_as_the_handler_takes_them() -> None:
    downstream = Downstream(2)
    begin(downstream, 0, 2)
    waits = [downstream.ask(10) for _ in range(4)]
    assert waits == [SOONEST, SOONEST + 5, SOONEST + 10, SOONEST + 15]


def test_a_quick_handler_gets_its_jobs_again_quickly() -> None:
    downstream = Downstream(16)
    for second in range(50):
        begin(downstream, second)
        downstream.ended(second, second + 0.1, answered=True, timed_out=False)
    begin(downstream, 100, 16)
    waits = [downstream.ask(100) for _ in range(1000)]
    assert max(wait for wait in waits if wait is not None) < SOONEST + 1000 * 0.1 / 16 + 0.1


def test_no_job_waits_longer_than_a_minute_for_a_handler_that_answers() -> None:
    downstream = Downstream(1)
    begin(downstream, 0)
    waits = [downstream.ask(29) for _ in range(100)]
    assert max(wait for wait in waits if wait is not None) == LATEST


def test_time_outs_in_a_row_leave_one_probe_at_a_time() -> None:
    downstream = Downstream(16)
    now = silent(downstream)
    assert downstream.ask(now) is not None
    assert downstream.ask(now + PROBE_EVERY - 0.1) is not None
    begin(downstream, now + PROBE_EVERY)
    assert downstream.ask(now + PROBE_EVERY) is not None
    assert downstream.ask(now + 10 * PROBE_EVERY) is not None  # while the probe runs


@pytest.mark.parametrize("seconds", [30, 0])
def test_a_probe_without_an_answer_is_followed_by_another_one_later(seconds: float) -> None:
    downstream = Downstream(16)
    began = silent(downstream) + PROBE_EVERY
    begin(downstream, began)
    downstream.ended(began, began + seconds, answered=False, timed_out=seconds > 0)
    assert downstream.ask(began + PROBE_EVERY - 0.1) is not None
    begin(downstream, began + PROBE_EVERY)


def test_a_probe_that_is_answered_gives_the_handler_its_share_again() -> None:
    downstream = Downstream(16)
    began = silent(downstream) + PROBE_EVERY
    begin(downstream, began)
    downstream.ended(began, began + 1, answered=True, timed_out=False)
    assert downstream.timeouts == 0
    begin(downstream, began + 1, 16)
    assert downstream.ask(began + 1) is not None


def test_an_answer_in_between_breaks_the_row() -> None:
    downstream = Downstream(16)
    now = silent(downstream, times=TIMEOUTS - 1)
    begin(downstream, now)
    downstream.ended(now, now + 1, answered=True, timed_out=False)
    now = silent(downstream, times=TIMEOUTS - 1)
    begin(downstream, now, 16)


def test_a_refused_connection_is_neither_an_answer_nor_a_time_out() -> None:
    downstream = Downstream(16)
    began = silent(downstream) + PROBE_EVERY
    begin(downstream, began)
    downstream.ended(began, began, answered=False, timed_out=False)
    assert downstream.timeouts == TIMEOUTS


def test_a_thousand_jobs_of_a_dead_handler_come_back_seldom() -> None:
    downstream = Downstream(16)
    now = silent(downstream)
    waits = [downstream.ask(now + second / 400) for second in range(1000)]
    assert [wait for wait in waits if wait is None] == []
    late = [wait for wait in waits if wait == LATEST_PROBED]
    assert len(late) > 900
