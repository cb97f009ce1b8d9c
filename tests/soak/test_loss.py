"""The loss test with many faults, in pieces: what was played stays played when it is interrupted."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.balance import FAULTS
from tests.e2e.loss import story
from tests.e2e.loss.faults import VICTIMS

pytestmark = pytest.mark.soak

KILLS = int(os.environ.get("KILLS", "200"))
PIECE = 20
FIRST_SEED = int(os.environ.get("SEED", "1"))
SEEDS = range(FIRST_SEED, FIRST_SEED + -(-KILLS // PIECE))


@pytest.fixture
def pieces(request: pytest.FixtureRequest) -> Path:
    """The folder of figures; pytest keeps it from run to run."""
    return Path(request.config.cache.mkdir("soak-loss"))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_piece_loses_nothing(seed: int, pieces: Path, tmp_path: Path) -> None:
    done = pieces / f"{seed}.json"
    if not done.exists():
        outcome = story.run(tmp_path, seed=seed, kills=PIECE)
        print(story.report(f"seed {seed}", outcome.figures()))
        assert not outcome.balance.wrong
        done.write_text(json.dumps(outcome.figures()))
    assert json.loads(done.read_text())["faults"] == PIECE


def test_all_pieces_together_lose_nothing(pieces: Path) -> None:
    """Runs last; prints the sum, and lets the next run begin anew."""
    total: Counter[str] = Counter()
    for seed in SEEDS:
        total.update(json.loads((pieces / f"{seed}.json").read_text()))
    print(story.report(f"seeds {SEEDS[0]} to {SEEDS[-1]}", total))
    assert total["faults"] >= KILLS
    assert all(total[kind] for kind in VICTIMS)
    assert not any(total[fault] for fault in FAULTS)
    for seed in SEEDS:
        (pieces / f"{seed}.json").unlink()
