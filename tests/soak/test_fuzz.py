"""Hostile requests for ten minutes; `FUZZ` is another number of seconds, `SEED` where to begin."""

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import psutil
import pytest
from redis import Redis

from tests.receive.fuzz import GOOD, SETTINGS, attack, crowd
from tests.receive.web import BOUND, in_process, prediction

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("FUZZ", "600"))
SEED = int(os.environ.get("SEED", "1"))
ROUND = 200
ROOM = 32 << 20
"""Bytes by which the receiver may grow after the first tenth of the time."""
CROWD = 300
"""Connections that are idle, or promise much, while the others are answered."""


def test_hostile_requests_are_never_a_fault_of_ours(valkey_url: str, redis: Redis, tmp_path: Path) -> None:
    """No 5xx, no traceback, flat memory, and good deliveries pass within the bound all the time."""
    statuses, settled, slowest = Counter[int](), 0, 0.0
    with (
        in_process(valkey_url, tmp_path, OUTKEEP_DISK_FLOOR="0", **SETTINGS) as (web, process),
        ThreadPoolExecutor(4) as pool,
    ):
        receiver = psutil.Process(process.pid)
        start = time.monotonic()
        for first in count(SEED * 10_000_000, ROUND):
            held = crowd(web, first, CROWD)
            answers = [pool.submit(attack, web, seed) for seed in range(first, first + ROUND)]
            while True:
                began = time.monotonic()
                assert web.outcome(prediction(f"good-{time.time_ns()}")) == "accepted"
                slowest = max(slowest, time.monotonic() - began)
                if all(one.done() for one in answers):
                    break
            statuses.update(one.result() for one in answers)
            for connection in held:
                connection.close()
            assert set(statuses) - {0} <= GOOD, f"seeds {first} to {first + ROUND}: {statuses}"
            spent = time.monotonic() - start
            if spent < SECONDS / 10 or not settled:
                settled = max(settled, receiver.memory_info().rss)
            elif spent > SECONDS:
                break
        grown = receiver.memory_info().rss - settled
    counts = ", ".join(f"{number} times {status or 'closed'}" for status, number in statuses.most_common())
    print(
        f"\n{SECONDS:g} s of fuzzing, seed {SEED}: {counts}; memory grew by {grown >> 10} KiB; "
        f"a good delivery took {slowest:.2f} s at most"
    )
    said = (tmp_path / "serve.log").read_bytes()
    assert b"Traceback" not in said
    # Meant: what is signed and unusable cannot be kept once the quarantine is full.
    assert statuses[503] <= said.count(b'"quarantine_full"')
    assert grown < ROOM
    assert slowest < BOUND
