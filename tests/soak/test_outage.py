"""Redis away for longer than any sender tries again."""

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.e2e.loss.story import stage

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("OUTAGE", "600"))
RATE = 5.0


def test_ten_minutes_without_redis_lose_nothing(tmp_path: Path) -> None:
    """Everything sent in the meantime is acknowledged at the first attempt or a later one, kept and told."""
    with stage(tmp_path, seed=1, rate=RATE) as set_up:
        valkey = set_up.up.pids()["valkey"]
        with set_up.traffic.flowing():
            set_up.traffic.wait_until_acknowledged(20)
            os.kill(valkey, signal.SIGSTOP)
            threading.Event().wait(SECONDS)
            os.kill(valkey, signal.SIGCONT)
        found = set_up.balance()
    counts = f"{found.sent} sent, {found.acknowledged} acknowledged, {found.stored} stored"
    print(f"\n{SECONDS:g} s without Redis: {counts}")
    assert not found.wrong
    assert found.sent == found.acknowledged == found.stored >= SECONDS
