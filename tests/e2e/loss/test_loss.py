"""Nothing acknowledged is lost, whatever dies on the way: `make loss SEED=… KILLS=…`."""

import os
from pathlib import Path

import pytest

from tests.e2e.loss import story
from tests.e2e.loss.faults import VICTIMS, draw
from tests.e2e.running import running_up
from tests.e2e.separate import running_separately

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("SEED", "1"))
KILLS = int(os.environ.get("KILLS", "10"))


def test_faults_are_drawn_from_the_seed_alone() -> None:
    assert draw(7, 40) == draw(7, 40) != draw(8, 40)
    assert {fault.kind for fault in draw(7, len(VICTIMS))} == set(VICTIMS)


@pytest.mark.parametrize(
    ("running", "kills"), [(running_up, KILLS), (running_separately, KILLS // 2)], ids=["up", "separate"]
)
def test_nothing_acknowledged_is_lost(tmp_path: Path, running: story.Running, kills: int) -> None:
    """Under `outkeep up`, and with receiver, workers and Valkey as processes of their own."""
    outcome = story.run(tmp_path, seed=SEED, kills=kills, running=running)
    print(story.report(f"seed {SEED}", outcome.figures()))
    assert not outcome.balance.wrong
    assert len(outcome.struck) == kills
    assert outcome.balance.acknowledged
