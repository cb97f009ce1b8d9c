"""Waiting on the command line."""

import signal

import pytest

from app.cli.running import TRIES, interrupts_held, patiently
from app.core.errors import Transient


def test_too_many_requests_are_waited_for_as_long_as_asked() -> None:
    failures = [
        Transient("api_busy", "slow down", retry_after=7.0),
        Transient("creations_limited", "slow down"),
        Transient("api_busy", "slow down", retry_after=1e6),
    ]
    waits: list[float] = []
    said: list[str] = []

    def call() -> str:
        if failures:
            raise failures.pop(0)
        return "done"

    assert patiently(call, said.append, sleep=waits.append) == "done"
    assert waits == [7.0, 4.0, 60.0]
    assert said[0] == "waiting 7 s: slow down"


def test_waiting_for_fewer_requests_ends() -> None:
    waits: list[float] = []

    def call() -> str:
        raise Transient("api_busy", "slow down", retry_after=1.0)

    with pytest.raises(Transient):
        patiently(call, print, sleep=waits.append)
    assert len(waits) == TRIES - 1


def test_what_may_have_been_done_is_not_done_again() -> None:
    calls: list[int] = []

    def call() -> str:
        calls.append(1)
        raise Transient("api_unanswered", "it may have been created")

    with pytest.raises(Transient):
        patiently(call, print, sleep=print)
    assert len(calls) == 1


def test_ctrl_c_waits_until_it_may_be_heard_and_is_answered_once() -> None:
    said: list[str] = []
    with interrupts_held(said.append) as came:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert came == [signal.SIGINT] * 2
    assert said == ["waiting until it is known whether the prediction was created"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
