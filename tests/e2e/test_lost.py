"""An output that Replicate has deleted already: said with its reason wherever somebody looks."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.simulator import Simulator
from tests import forked
from tests.e2e.recorder import DEFAULT_SECRET, Recorder, recorder
from tests.e2e.running import Up, running_up, until
from tests.receive.web import prediction, signed


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator() as running:
        yield running


@pytest.fixture
def downstream() -> Iterator[Recorder]:
    with recorder() as running:
        yield running


@pytest.fixture
def up(tmp_path: Path, simulator: Simulator, downstream: Recorder) -> Iterator[Up]:
    settings = {"REPLICATE_WEBHOOK_SECRET": DEFAULT_SECRET, "OUTKEEP_OUTPUT_HOSTS": simulator.url}
    with running_up(tmp_path, handlers=downstream.handler(), settings=settings) as running:
        yield running


def test_a_lost_output_is_said_everywhere_and_the_others_are_kept(
    up: Up, simulator: Simulator, downstream: Recorder
) -> None:
    urls = [simulator.add_file("kept.txt", b"kept"), simulator.add_file("lost.png", b"lost")]
    simulator.remove_file(urls[1])
    body = prediction("partly", output=urls)
    answer = httpx.post(up.hook, content=body, headers=signed(body), timeout=60, trust_env=False)
    assert answer.status_code == 202
    downstream.wait_for(lambda them: "partly" in them.ids(), "the handler is told")

    lost = {"pointer": "/output/1", "source": urls[1], "error": "not_found"}
    data = downstream.of("partly")[0].event["data"]
    assert data["lost"] == [lost]
    assert [file["pointer"] for file in data["files"]] == ["/output/0"]
    manifest = json.loads((up.outputs / "predictions/partly/prediction.json").read_text())
    assert [file["error"] for file in manifest["files"]] == [None, "not_found"]
    listed = forked.run(
        [sys.executable, "-m", "app.cli", "ls", "--lost", "--json"],
        cwd=up.folder,
        env=up.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    [line] = [json.loads(text) for text in listed.stdout.splitlines()]
    assert (line["id"], line["files"], line["lost"]) == ("partly", 1, 1)
    until(
        lambda: (
            'outkeep_files_lost_total{code="not_found"} 1' in httpx.get(f"{up.url}/metrics", timeout=60).text
        ),
        "metrics count it",
    )
