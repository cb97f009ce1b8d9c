"""Counts of a process on their way to Redis."""

from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.core.names import COUNTERS
from app.core.vocabulary import BYTES, HOUR_LEFT, NOTIFIED, RECEIVED, REFUSED
from app.listening import free_port
from app.tally import MOST_SERIES, Tally
from tests.app.web import wait_until


def counts(redis: Redis) -> dict[str, int]:
    found = cast(dict[bytes, bytes], redis.hgetall(COUNTERS))
    return {name.decode(): int(number) for name, number in found.items()}


def away() -> Redis:
    return Redis(port=free_port(), retry=Retry(NoBackoff(), 0))


def test_counts_of_two_processes_add_up(redis: Redis) -> None:
    for _ in range(2):
        tally = Tally()
        tally.add(RECEIVED, "accepted")
        tally.add(RECEIVED, "duplicate")
        tally.add(BYTES, amount=1 << 40)
        tally.flush(redis)
        tally.flush(redis)
    assert counts(redis) == {
        'outkeep_deliveries_total{outcome="accepted"}': 2,
        'outkeep_deliveries_total{outcome="duplicate"}': 2,
        "outkeep_bytes_stored_total": 1 << 41,
    }


@pytest.mark.parametrize(
    ("value", "bound"), [(-5, "0"), (0, "0"), (0.5, "60"), (60, "60"), (3589.9, "3590"), (3590.1, "+Inf")]
)
def test_a_value_is_counted_in_its_range(redis: Redis, value: float, bound: str) -> None:
    tally = Tally()
    tally.observe(HOUR_LEFT, value)
    assert tally.waiting()[f'outkeep_hour_left_seconds_bucket{{le="{bound}"}}'] == 1


def test_what_redis_does_not_take_is_kept_for_later(redis: Redis) -> None:
    tally = Tally()
    tally.add(REFUSED, "bad_signature")
    tally.flush(away())
    tally.add(REFUSED, "bad_signature")
    tally.flush(away())
    assert tally.waiting() == {'outkeep_refusals_total{reason="bad_signature"}': 2}
    tally.flush(redis)
    assert counts(redis) == {'outkeep_refusals_total{reason="bad_signature"}': 2}
    assert tally.waiting() == {}


@pytest.mark.parametrize("value", ["", 'a"b', "a b", "{", "x" * 65, "ü", "a\nb", None.__class__])
def test_a_label_that_could_be_misread_is_counted_as_other(value: object) -> None:
    tally = Tally()
    tally.add(RECEIVED, value)
    assert tally.waiting() == {'outkeep_deliveries_total{outcome="other"}': 1}


def test_the_number_of_series_is_bounded() -> None:
    tally = Tally()
    for number in range(MOST_SERIES + 100):
        tally.add(NOTIFIED, f"handler-{number}", "delivered")
    tally.add(NOTIFIED, "handler-0", "delivered")
    waiting = tally.waiting()
    assert len(waiting) == MOST_SERIES + 1
    assert waiting['outkeep_notifications_total{handler="other",outcome="other"}'] == 100
    assert waiting['outkeep_notifications_total{handler="handler-0",outcome="delivered"}'] == 2


def test_many_threads_lose_no_count(redis: Redis) -> None:
    tally = Tally()

    def work(_: int) -> None:
        for _ in range(500):
            tally.add(RECEIVED, "accepted")
        tally.flush(redis)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    tally.flush(redis)
    assert counts(redis) == {'outkeep_deliveries_total{outcome="accepted"}': 4000}


def test_a_process_flushes_by_itself_and_at_its_end(redis: Redis) -> None:
    with Tally().flushing(redis) as tally:
        tally.add(RECEIVED, "accepted")
        wait_until(lambda: len(counts(redis)) == 1)
        tally.add(REFUSED, "bad_signature")
    assert len(counts(redis)) == 2
