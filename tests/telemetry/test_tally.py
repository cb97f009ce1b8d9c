"""Counts of a process on their way to Redis."""

import errno
import json
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.core.names import COUNTERS
from app.core.vocabulary import BYTES, HOUR_LEFT, NOTIFIED, RECEIVED, REFUSED
from app.receive.listening import free_port
from app.telemetry.tally import FOLDER, MOST_SERIES, Kept, Tally
from tests import forked
from tests.engine.worker_process import ROOT
from tests.receive.web import clean_environment, environment, wait_until


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


CHILD = """
import sys
from pathlib import Path
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from app.core.vocabulary import RECEIVED
from app.telemetry.tally import Tally

away = Redis(port=int(sys.argv[1]), retry=Retry(NoBackoff(), 0))
with Tally().flushing(away, Path(sys.argv[2])) as tally:
    for _ in range(int(sys.argv[3])):
        tally.add(RECEIVED, "spooled")
    print("counted", flush=True)
    sys.stdin.read()
"""


def kept_in(folder: Path) -> int:
    """What is kept for later, by whomever."""
    try:
        return sum(sum(json.loads(path.read_text()).values()) for path in folder.glob("*.counts"))
    except FileNotFoundError:  # it is being taken over
        return -1


def test_what_was_counted_while_redis_was_away_survives_kills(redis: Redis, tmp_path: Path) -> None:
    folder, port = tmp_path / "counts", str(free_port())
    for number in (96, 175):
        command = [sys.executable, "-c", CHILD, port, str(folder), str(number)]
        with forked.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "counted\n"
            expected = 96 if number == 96 else 96 + 175  # the second takes over what the first has left
            wait_until(lambda: kept_in(folder) == expected)  # noqa: B023 - asked at once
            with Tally().flushing(redis, folder):
                wait_until(lambda: kept_in(folder) == expected)  # noqa: B023 - what lives is not taken
            child.kill()
    with Tally().flushing(redis, folder):
        wait_until(lambda: counts(redis) == {'outkeep_deliveries_total{outcome="spooled"}': 271})
        wait_until(lambda: not list(folder.glob("*.counts")))


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"a": "b"}', '{"a": null}'])
def test_counts_that_cannot_be_read_stop_nobody(redis: Redis, tmp_path: Path, text: str) -> None:
    (tmp_path / "torn.counts").write_text(text)
    with Tally().flushing(redis, tmp_path) as tally:
        tally.add(REFUSED, "bad_signature")
        wait_until(lambda: counts(redis) == {'outkeep_refusals_total{reason="bad_signature"}': 1})


def test_what_many_find_at_once_is_taken_over_by_one_of_them(tmp_path: Path) -> None:
    """One may have opened a file that another one has just taken over, removed and let go."""
    for number in range(300):
        (tmp_path / f"{number}.counts").write_text(json.dumps({f"field{number}": 1}))
    start = threading.Barrier(8)
    found: list[str] = []

    def take(_: int) -> None:
        start.wait()
        for path, counts in Kept(tmp_path).left_behind():
            found.append(*counts)
            path.unlink()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, range(8)))
    assert Counter(found) == {f"field{number}": 1 for number in range(300)}


ON_A_BAD_DISK = """
import errno, sys
from pathlib import Path
from redis import Redis
from app.core.vocabulary import RECEIVED
from app.telemetry.tally import Tally
from tests import forked, kernel

getattr(kernel, sys.argv[3])(*(int(one) for one in sys.argv[4:]))
with Tally().flushing(Redis.from_url(sys.argv[1]), Path(sys.argv[2])) as tally:
    for _ in sys.stdin:
        tally.add(RECEIVED, "accepted")
"""


@pytest.mark.parametrize(
    "fault",
    [
        ("forbid_removals",),
        ("forbid_new_files", errno.ENOSPC),
        ("forbid_new_files", errno.EROFS),
        ("forbid_new_files", errno.EDQUOT),
        ("forbid_new_files", errno.EACCES),
    ],
)
def test_what_was_left_behind_waits_where_the_disk_does_not_do_its_part(
    redis: Redis, valkey_url: str, tmp_path: Path, fault: tuple[str | int, ...]
) -> None:
    """And is neither lost nor counted again and again; what the process itself counts goes on."""
    left = tmp_path / "dead.counts"
    left.write_text('{"planted": 5}')
    command = [sys.executable, "-c", ON_A_BAD_DISK, valkey_url, str(tmp_path), *map(str, fault)]
    with forked.Popen(command, stdin=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdin is not None
        for number in range(1, 4):  # each is another turn
            child.stdin.write("\n")
            child.stdin.flush()
            wait_until(lambda: counts(redis) == {'outkeep_deliveries_total{outcome="accepted"}': number})  # noqa: B023 - asked at once
        child.stdin.close()
    assert left.read_text() == '{"planted": 5}'
    with Tally().flushing(redis, tmp_path):
        wait_until(lambda: counts(redis).get("planted") == 5)
        wait_until(lambda: not left.exists())


@pytest.mark.parametrize("process", [["serve"], ["work", "persist"], ["work", "notify"]])
def test_each_process_that_counts_takes_over_what_lies_in_its_data(
    redis: Redis, valkey_url: str, tmp_path: Path, process: list[str]
) -> None:
    left = tmp_path / FOLDER / "dead.counts"
    left.parent.mkdir()
    left.write_text('{"planted": 5}')
    settings = clean_environment(environment(valkey_url, tmp_path, PORT="0"))
    with forked.Popen([sys.executable, "-m", "app.cli", *process], cwd=ROOT, env=settings) as running:
        try:
            wait_until(lambda: counts(redis).get("planted") == 5)
            wait_until(lambda: not left.exists())
        finally:
            running.terminate()
