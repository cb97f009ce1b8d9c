"""What is said of workers and jobs, and what to do about it."""

import pytest

from app.core import findings
from app.core.findings import Level


@pytest.mark.parametrize(
    ("queue", "silences", "level", "detail"),
    [
        ("persist", [], "fail", "none runs; start `outkeep work persist`"),
        ("handle", [31.0], "fail", "none runs; start `outkeep work handle`"),
        ("handle", [31.0, 3.0], "ok", "1 running"),
        ("thumbs", [], "fail", "none runs; start `rq worker -S json thumbs`"),
        ("thumbs", [3.0, 400.0], "ok", "1 running"),
        ("thumbs", [300.0, 400.0], "ok", "2 registered, last heard of 300 s ago"),
    ],
)
def test_a_queue_without_a_worker_fails_and_an_idle_worker_of_rq_says_little(
    queue: str, silences: list[float], level: str, detail: str
) -> None:
    found = findings.workers(queue, silences)
    assert (found.level, found.check, found.detail) == (level, f"workers of {queue}", detail)


@pytest.mark.parametrize(("age", "level"), [(0.0, "ok"), (59.0, "ok"), (60.0, "warn"), (600.0, "fail")])
def test_waiting_jobs_are_judged_by_the_hour(age: float, level: str) -> None:
    assert findings.waiting("persist", 3, age).level == level


@pytest.mark.parametrize(
    ("queue", "command"), [("persist", "outkeep work persist"), ("thumbs", "rq worker -S json thumbs")]
)
def test_who_waits_for_too_long_is_told_which_worker_to_start(queue: str, command: str) -> None:
    assert (
        findings.waiting(queue, 1, 90.0).detail
        == f"1 waiting, the oldest for 90 s; start more of `{command}`"
    )


def test_dead_letters_are_warned_of() -> None:
    assert findings.dead_letters("notify", 0).level is Level.OK
    assert findings.dead_letters("notify", 1).level is Level.WARN


def test_ends_that_nobody_told_are_named() -> None:
    assert findings.untold([]).level is Level.OK
    found = findings.untold(["a", "b", "c", "d"])
    assert found.level is Level.WARN
    assert found.detail.startswith(
        "4 jobs of handlers have ended, and no outcome says so (a, b, c, …); the sweep"
    )
