"""`kill -9` during traffic: of every process below `outkeep up`, and of `up` itself."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from app.simulator import Simulator
from tests.e2e.balance import require_nothing_lost
from tests.e2e.file_host import FileHost, file_host
from tests.e2e.recorder import Recorder, Slow, recorder
from tests.e2e.running import Up, running_up, until
from tests.e2e.traffic import RETRY_DELAYS, Traffic

pytestmark = pytest.mark.slow

COUNT = 200
RATE = 10.0
"""Deliveries a second, of which there are as many as are needed."""

SEED = int(os.environ.get("SEED", "1"))
BELOW = ("receiver", "worker", "valkey")


@pytest.fixture
def host() -> Iterator[FileHost]:
    with file_host() as running:
        yield running


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(retry_delays=RETRY_DELAYS) as running:
        yield running


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def downstream(slow: Slow) -> Iterator[Recorder]:
    with recorder(answer=slow) as running:
        yield running


@pytest.fixture
def up(tmp_path: Path, host: FileHost, simulator: Simulator, downstream: Recorder) -> Iterator[Up]:
    settings = {"REPLICATE_WEBHOOK_SECRET": simulator.secret, "OUTKEEP_OUTPUT_HOSTS": host.url}
    with running_up(tmp_path, handlers=downstream.handler(), settings=settings) as running:
        yield running


def kill_and_await_another(up: Up, victim: str) -> None:
    until(lambda: victim in up.pids(), f"{victim} runs")
    killed = up.kill(victim)
    until(lambda: up.pids().get(victim, killed) != killed, f"{victim} runs again")


def test_kills_of_every_process_below_up_lose_nothing(
    up: Up, host: FileHost, simulator: Simulator, downstream: Recorder, slow: Slow
) -> None:
    """Each is killed once, in an order drawn from the seed, while work is in flight."""
    victims = [*BELOW]
    random.Random(SEED).shuffle(victims)
    # No end of it, so that work is in flight however long the restarts take.
    traffic = Traffic(None, seed=SEED, host=host, simulator=simulator, up=up, rate=RATE)
    with traffic.flowing():
        for number, victim in enumerate(victims, start=1):
            traffic.wait_until_acknowledged(20 * number)
            until(lambda: host.open and slow.open, "files and notifications are on their way")
            kill_and_await_another(up, victim)
    require_nothing_lost(traffic, up, host, downstream)
    assert up.text().count("signal SIGKILL") == len(victims)
    assert up.stop() == 0
    assert up.processes() == []


def test_a_kill_of_up_loses_nothing_once_it_is_started_again(
    up: Up, host: FileHost, simulator: Simulator, downstream: Recorder
) -> None:
    traffic = Traffic(COUNT, seed=SEED, host=host, simulator=simulator, up=up)
    with traffic.flowing():
        traffic.wait_until_acknowledged(COUNT // 3)
        until(lambda: host.open, "downloads are on their way")
        old = up.pids()
        up.kill()
        assert psutil.pid_exists(old["valkey"]), "Valkey outlives up, so that it can be taken over"
        up.start()
        until(lambda: not any(psutil.pid_exists(pid) for pid in old.values()), "all of the old ones end")
        assert up.pids().keys() == old.keys()
    require_nothing_lost(traffic, up, host, downstream)
    assert up.stop() == 0
    assert up.processes() == []
