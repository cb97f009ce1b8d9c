"""What ended while a real `outkeep up` was down is found on its return, kept once, and told once.

No secret is set and no webhook arrives: so it runs on a laptop with a token and nothing else, too.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.core.manifest import format_time
from app.core.names import IDENTITY_NAME, RECONCILE_TURN, RECONCILED, Kind
from app.reconcile.memory import Memory
from app.simulator import Simulator
from app.simulator import pictures as media
from tests import forked
from tests.e2e.recorder import Recorder
from tests.e2e.running import OUTKEEP, Up, until

pytestmark = pytest.mark.slow

PREDICTIONS, TRAININGS = 50, 5
STATUSES = ("succeeded", "failed", "canceled", "aborted", "succeeded")


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(reticent=True, retry_delays=(0.1, 0.1)) as running:
        yield running


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, simulator: Simulator, downstream: Recorder) -> Iterator[Up]:
    settings = {
        "OUTKEEP_OUTPUT_HOSTS": simulator.url,
        "REPLICATE_API_TOKEN": simulator.token,
        "REPLICATE_BASE_URL": simulator.url,
    }
    up = Up(tmp_path_factory.mktemp("up"), handlers=downstream.handler(), settings=settings)
    del up.environment["REPLICATE_WEBHOOK_SECRET"]
    # It has run here before, so what ends from now on is ours to tell of.
    up.outputs.mkdir(parents=True)
    began = format_time(datetime.now(UTC) - timedelta(hours=6))
    (up.outputs / IDENTITY_NAME).write_text(json.dumps({"first_start": began}))
    try:
        yield up
    finally:
        up.clear()


def ended(simulator: Simulator, kind: Kind, number: int) -> dict[str, Any]:
    """One that ended lately; of each fifth of the predictions the data is gone already."""
    status = STATUSES[number % 5] if kind is Kind.PREDICTION else "succeeded"
    is_gone = kind is Kind.PREDICTION and number % 10 == 9
    at = datetime.now(UTC) - timedelta(minutes=5 + number % 40 + (60 if is_gone else 0))
    output: Any = None
    if status == "succeeded" and not is_gone:
        name = f"out-{number}.png"
        output = simulator.add_file(name, media.png(f"{kind} {number}"))
        output = [output] if kind is Kind.PREDICTION else {"version": "o/m:1", "weights": output}
    return {
        "id": f"{kind}{number:02}",
        "status": status,
        "input": {} if is_gone else {"prompt": str(number)},
        "output": output,
        "error": "CUDA out of memory" if status == "failed" else None,
        "logs": "",
        "created_at": format_time(at - timedelta(minutes=2)),
        "completed_at": format_time(at),
        "data_removed": is_gone,
    }


def urls(one: dict[str, Any]) -> list[str]:
    output = one["output"]
    return list(output) if isinstance(output, list) else [output["weights"]] if output else []


def stop_as_if_long_ago(up: Up) -> None:
    """Stop it as if the pass that it has made had been three hours ago."""
    # Or it makes another one before it stops.
    until(lambda: up.redis().set(RECONCILE_TURN, "the test's", nx=True, ex=60), "no pass is on its way")
    memory, then = Memory(up.redis()), datetime.now(UTC) - timedelta(hours=3)
    for kind in Kind:
        memory.set_mark(kind, then)
    memory.completed(then)
    assert up.stop() == 0


def folder_of(up: Up, kind: Kind, one: dict[str, Any]) -> Path:
    return up.outputs / kind.folder / str(one["id"])


def test_what_ended_while_it_was_down_is_kept_and_told_once(
    up: Up, simulator: Simulator, downstream: Recorder
) -> None:
    up.start()
    until(lambda: up.redis().exists(RECONCILED), "a first pass is complete")
    stop_as_if_long_ago(up)

    counts = ((Kind.PREDICTION, PREDICTIONS), (Kind.TRAINING, TRAININGS))
    missed = [(kind, ended(simulator, kind, number)) for kind, count in counts for number in range(count)]
    for kind, one in missed:
        simulator.finish(kind, one, webhook=f"{up.hook}{'/trainings' if kind is Kind.TRAINING else ''}")
    for _, one in missed:
        assert simulator.wait_for_delivery(one["id"]).status is None
    up.start()
    up.redis().delete(RECONCILE_TURN)
    downstream.wait_for(lambda it: len(it.ids()) == len(missed), "all are told")

    for kind, one in missed:
        manifest = json.loads((folder_of(up, kind, one) / "prediction.json").read_text())
        assert manifest["prediction"] == one
        assert manifest["source"] == "reconcile"
        lost = [file["error"] for file in manifest["files"] if file["error"]]
        gone = one["data_removed"] and one["status"] == "succeeded"
        assert lost == (["data_removed"] if gone else [])
        for url, file in zip(urls(one), manifest["files"] if not gone else [], strict=True):
            content = (folder_of(up, kind, one) / file["name"]).read_bytes()
            assert content == media.png(f"{kind} {int(one['id'][-2:])}")
            assert file["sha256"] == hashlib.sha256(content).hexdigest()
            assert simulator.downloads(url) == 1
        [told] = downstream.of(one["id"])
        downstream.verify(told)
        assert told.event["type"] == f"{kind}.{one['status']}"
        assert [file["error"] for file in told.event["data"]["lost"]] == lost


def test_a_second_look_fetches_nothing_and_tells_nobody(
    up: Up, simulator: Simulator, downstream: Recorder
) -> None:
    done = forked.run(
        [OUTKEEP, "reconcile", "--since", "3h", "--json"],
        cwd=up.folder,
        env=up.environment,
        capture_output=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["taken"] == []
    assert (found["predictions"]["known"], found["trainings"]["known"]) == (PREDICTIONS, TRAININGS)
    assert simulator.requests("/v1/predictions/.*") == PREDICTIONS
    assert simulator.requests("/v1/trainings/.*") == TRAININGS
    assert len(downstream.received) == PREDICTIONS + TRAININGS


def test_what_was_lost_is_listed(up: Up) -> None:
    done = forked.run(
        [OUTKEEP, "ls", "--lost", "--json"],
        cwd=up.folder,
        env=up.environment,
        capture_output=True,
        check=True,
    )
    listed = {json.loads(line)["id"] for line in done.stdout.splitlines()}
    assert listed == {f"prediction{number:02}" for number in range(9, PREDICTIONS, 10)}


def test_a_delivery_is_verified_with_the_secret_that_was_fetched(
    up: Up, simulator: Simulator, downstream: Recorder
) -> None:
    one = ended(simulator, Kind.PREDICTION, 70)
    simulator.finish(Kind.PREDICTION, one, webhook=up.hook)
    assert simulator.wait_for_delivery(one["id"]).status == 202
    downstream.wait_for(lambda it: one["id"] in it.ids(), "it is told")
    assert simulator.secret not in up.text()
    assert up.stop() == 0
