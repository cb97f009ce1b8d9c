"""Hostile requests for ten minutes; `FUZZ` is another number of seconds, `SEED` where to begin."""

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path

import psutil
import pytest
from redis import Redis

from tests.app.fuzz import GOOD, SETTINGS, attack
from tests.app.web import in_process, prediction

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("FUZZ", "600"))
SEED = int(os.environ.get("SEED", "1"))
ROUND = 200
ROOM = 32 << 20
"""Bytes by which the receiver may grow after the first tenth of the time."""


def test_hostile_requests_are_never_a_fault_of_ours(valkey_url: str, redis: Redis, tmp_path: Path) -> None:
    """No 5xx, no traceback, flat memory, and good deliveries pass all the time."""
    statuses, settled = Counter[int](), 0
    with (
        in_process(valkey_url, tmp_path, OUTKEEP_DISK_FLOOR="0", **SETTINGS) as (web, process),
        ThreadPoolExecutor(4) as pool,
    ):
        receiver = psutil.Process(process.pid)
        start = time.monotonic()
        for first in count(SEED * 10_000_000, ROUND):
            statuses.update(pool.map(partial(attack, web), range(first, first + ROUND)))
            assert set(statuses) - {0} <= GOOD - {503}, f"seeds {first} to {first + ROUND}: {statuses}"
            assert web.outcome(prediction(f"good-{first}")) == "accepted"
            spent = time.monotonic() - start
            if spent < SECONDS / 10 or not settled:
                settled = max(settled, receiver.memory_info().rss)
            elif spent > SECONDS:
                break
        grown = receiver.memory_info().rss - settled
    counts = ", ".join(f"{number} times {status or 'closed'}" for status, number in statuses.most_common())
    print(f"\n{SECONDS:g} s of fuzzing, seed {SEED}: {counts}; memory grew by {grown >> 10} KiB")
    assert b"Traceback" not in (tmp_path / "serve.log").read_bytes()
    assert grown < ROOM
