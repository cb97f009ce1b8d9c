"""Redis away for ten minutes under traffic; `OUTAGE` is another number of seconds."""

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.e2e.loss.story import stage
from tests.e2e.outage import require_an_outage_loses_nothing
from tests.own_valkey import own_valkey

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("OUTAGE", "600"))


def test_ten_minutes_without_redis_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with own_valkey() as valkey:
        print(require_an_outage_loses_nothing(valkey, tmp_path, seconds=SECONDS, hangs=False))


def test_ten_minutes_without_redis_lose_nothing_that_was_sent(tmp_path: Path) -> None:
    """The same through all of `outkeep up`, whose Valkey hangs: all is acknowledged, kept and told."""
    with stage(tmp_path, seed=1, rate=5.0) as set_up:
        valkey = set_up.up.pids()["valkey"]
        with set_up.traffic.flowing():
            set_up.traffic.wait_until_acknowledged(20)
            os.kill(valkey, signal.SIGSTOP)
            threading.Event().wait(SECONDS)
            os.kill(valkey, signal.SIGCONT)
        found = set_up.balance()
    print(f"\n{SECONDS:g} s without Redis: {found.acknowledged} acknowledged, {found.stored} stored")
    assert not found.wrong
    assert found.sent == found.acknowledged == found.stored >= SECONDS
