"""The one rule of fairness: who gets a place, and when the others come again."""

import pytest

from app.core.shares import LATEST, Shares


def taken(shares: Shares, key: str, now: float = 0.0, tries: int = 1000) -> int:
    """How many places a key gets that asks for all it can get."""
    return sum(shares.ask(key, now) is None for _ in range(tries))


@pytest.mark.parametrize(
    ("slots", "share"), [(1, 1), (2, 1), (3, 1), (4, 1), (8, 2), (20, 5), (64, 16), (256, 64), (1000, 250)]
)
def test_one_key_gets_a_quarter_and_always_one(slots: int, share: int) -> None:
    assert taken(Shares.of(slots), "slow") == share


@pytest.mark.parametrize(
    ("slots", "keys"), [(4, 1), (4, 2), (8, 1), (8, 3), (64, 4), (256, 1), (256, 3), (256, 7), (1000, 8)]
)
def test_slow_keys_leave_a_place_to_another_and_a_quarter_to_what_needs_none(slots: int, keys: int) -> None:
    shares = Shares.of(slots)
    got = [taken(shares, f"slow{number}") for number in range(keys)]
    assert taken(shares, "another") >= 1
    assert sum(got) < shares.running <= slots - slots // 4


@pytest.mark.parametrize("share", [1, 2, 16, 64])
def test_who_is_turned_away_comes_again_as_fast_as_places_become_free(share: int) -> None:
    shares = Shares(share, 4 * share)
    assert taken(shares, "a", 0.0, share) == share
    waits = [shares.ask("a", 10.0) for _ in range(4)]  # they run for ten seconds now
    assert waits == pytest.approx([10.0 / share * number for number in (1, 2, 3, 4)])
    assert shares.ask("b", 10.0) is None


def test_nobody_is_told_to_wait_longer_than_a_minute_or_not_at_all() -> None:
    shares = Shares(1, 4)
    assert shares.ask("a", 0.0) is None
    waits = [shares.ask("a", now) for now in (0.0, 0.0, 1e3, 1e6, 1e6)]
    assert all(wait is not None and 0 < wait <= LATEST for wait in waits)


def test_a_place_that_ended_serves_the_next() -> None:
    shares = Shares(2, 8)
    for now in range(1000):
        assert shares.ask("a", float(now)) is None
        assert shares.ask("a", now + 0.25) is None
        assert shares.ask("a", now + 0.5) is not None
        shares.ended("a", float(now), now + 0.75)
        shares.ended("a", now + 0.25, now + 0.75)
    assert shares.running == 0


def test_keys_that_are_gone_are_forgotten() -> None:
    shares = Shares.of(256)
    for number in range(10_000):
        assert shares.ask(f"host{number}", float(number)) is None
        shares.ended(f"host{number}", float(number), number + 0.5)
    assert len(shares._lines) < 300
