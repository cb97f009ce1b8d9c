"""Lines of follow-up predictions that only the handlers file knows of, while every process is killed once.

`notify` is killed at its worst moment: Replicate has created a follow-up, and nobody has noted which.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from replicate.client import Client

from app.core.names import AWAITED_HERE, NOTIFY_QUEUE
from app.simulator import Simulator
from tests import forked
from tests.api_host import ApiHost, Hanging, api_host
from tests.e2e.running import OUTKEEP, PATIENCE, Up, unfinished, until
from tests.serving import PLAIN

pytestmark = pytest.mark.slow

LINES = 5
STEPS = ("outkeep/image", "outkeep/copy", "outkeep/caption")
BELOW = ("receiver", "worker", "worker", "handle", "valkey")
CREATING = 2
"""Which of them is killed while Replicate creates a follow-up."""


HANDLERS = """
[[handler]]
name = "upscale"
on = ["succeeded"]
model = "outkeep/image"
predict = "outkeep/copy"
input = { image = "{files[0].url}", prompt = "{input.prompt}", scale = 2 }

[[handler]]
name = "caption"
on = ["succeeded"]
model = "outkeep/copy"
predict = "outkeep/caption"
input = { prompt = "{input.prompt}, {files[0].size} bytes", image = "{files[0].url}" }

[[handler]]
name = "note"
model = "outkeep/caption"
job = "notes.note"
"""

LOOP = """
[[handler]]
name = "again"
model = "outkeep/caption"
predict = "outkeep/caption"
input = { prompt = "{output}" }
"""

NOTES = """
from pathlib import Path

def note(event):
    data = event["data"]
    Path("noted", data["id"]).write_text(data["output"])
"""


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(pace=0.3) as running:
        yield running


@pytest.fixture
def client(simulator: Simulator) -> Iterator[Client]:
    official = Client(api_token=simulator.token, base_url=simulator.url, trust_env=False)
    with official._client:
        yield official


@pytest.fixture
def api(simulator: Simulator) -> Iterator[ApiHost]:
    """What Outkeep takes for Replicate's API; `client` asks the simulator itself."""
    with api_host(simulator) as running:
        yield running


def launched(folder: Path, api: ApiHost, handlers: str) -> Up:
    simulator = api.simulator
    up = Up(folder, handlers=handlers)
    up.environment |= {
        "OUTKEEP_OUTPUT_HOSTS": f"{simulator.url} {up.url}",
        "OUTKEEP_PUBLIC_URL": up.url,
        "REPLICATE_API_TOKEN": simulator.token,
        "REPLICATE_BASE_URL": api.url,
        "REPLICATE_WEBHOOK_SECRET": simulator.secret,
    }
    (folder / "notes.py").write_text(NOTES)
    (folder / "noted").mkdir()
    return up


@pytest.fixture
def up(tmp_path: Path, api: ApiHost) -> Iterator[Up]:
    running = launched(tmp_path, api, HANDLERS)
    try:
        running.start()
        yield running
    finally:
        running.clear()


def created(simulator: Simulator) -> list[dict[str, Any]]:
    """All predictions that Replicate knows of."""
    headers = {"authorization": f"Bearer {simulator.token}"}
    answer = PLAIN.get(f"{simulator.url}/v1/predictions", headers=headers)
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def manifests(up: Up) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in up.outputs.glob("predictions/*/prediction.json")]


def told(up: Up, handler: str) -> dict[str, dict[str, Any]]:
    """The outcome files of a handler, by the id of the prediction."""
    found = up.outputs.glob(f"predictions/*/told-{handler}.json")
    return {path.parent.name: json.loads(path.read_bytes()) for path in found}


def stored(up: Up, manifest: dict[str, Any]) -> bytes:
    """The first file of a prediction."""
    folder: Path = up.outputs / "predictions" / manifest["id"]
    name: str = manifest["files"][0]["name"]
    return (folder / name).read_bytes()


def show(up: Up, prediction_id: str) -> str:
    command = [OUTKEEP, "show", prediction_id]
    done = forked.run(command, cwd=up.folder, env=up.environment, capture_output=True, text=True, check=True)
    return done.stdout


def is_idle(up: Up) -> bool:
    """Whether no notify job waits or runs: those of killed workers have run again."""
    with up.redis() as redis:
        return not unfinished(redis, NOTIFY_QUEUE)


def kill_and_await_another(up: Up, victim: str) -> None:
    until(lambda: victim in up.pids(), f"{victim} runs")
    killed = up.kill(victim)
    until(lambda: up.pids().get(victim, killed) != killed, f"{victim} runs again")


def test_three_steps_end_with_one_result_each_whatever_is_killed(
    up: Up, api: ApiHost, simulator: Simulator, client: Client
) -> None:
    hanging = Hanging()
    for number, victim in enumerate(BELOW):
        if number == CREATING:
            api.mishaps = [hanging]
        client.models.predictions.create(
            STEPS[0], {"prompt": f"line {number}"}, webhook=up.hook, webhook_events_filter=["completed"]
        )
        steps = 1 + 2 * number  # so that each kill meets others on their way
        until(lambda steps=steps: len(manifests(up)) >= steps, f"{steps} steps are done")  # type: ignore[misc]
        assert number != CREATING or hanging.created.wait(PATIENCE)
        kill_and_await_another(up, victim)
    hanging.release.set()

    everything = LINES * len(STEPS)
    until(lambda: len(manifests(up)) == everything, "every step is kept")
    until(lambda: len(told(up, "note")) == LINES, "the function has run for each line")
    until(lambda: is_idle(up), "the job of the killed worker has run again")

    assert len(api.creations) == LINES * (len(STEPS) - 1), "each was asked for once"
    assert Counter(one["model"] for one in created(simulator)) == dict.fromkeys(STEPS, LINES)
    kept = {manifest["id"]: manifest for manifest in manifests(up)}
    assert kept.keys() == {one["id"] for one in created(simulator)}
    children = {
        parent: outcome["child"]
        for handler in ("upscale", "caption")
        for parent, outcome in told(up, handler).items()
    }
    assert children == {one["parent"]: one["id"] for one in kept.values() if one["parent"]}
    images = [one for one in kept.values() if one["prediction"]["model"] == STEPS[0]]
    assert [one["parent"] for one in images] == [None] * LINES
    for image in images:
        copy = kept[children[image["id"]]]
        caption = kept[children[copy["id"]]]
        assert stored(up, copy) == stored(up, image)
        prompt = image["prediction"]["input"]["prompt"]
        text = f"caption: {prompt}, {len(stored(up, image))} bytes"
        assert stored(up, caption).decode() == text
        assert (up.folder / "noted" / caption["id"]).read_text() == text
        assert told(up, "note")[caption["id"]]["outcome"] == "delivered"
        shown = show(up, copy["id"])
        assert f"follows {image['id']} by upscale" in shown
        assert f"followed by {caption['id']} (caption)" in shown
    assert up.stop() == 0


def test_without_a_public_url_each_step_is_found_soon_after_its_end(
    tmp_path: Path, api: ApiHost, simulator: Simulator
) -> None:
    up = launched(tmp_path, api, HANDLERS)
    del up.environment["OUTKEEP_PUBLIC_URL"]
    up.environment["REPLICATE_BASE_URL"] = simulator.url  # what is uploaded is found there
    # No pass may help: it would not come before a minute is over, and then leave each to its webhook.
    up.environment["OUTKEEP_RECONCILE"] = "off"
    try:
        up.start()
        command = [OUTKEEP, "run", STEPS[0], "-i", "prompt=a line", "--no-wait"]
        forked.run(command, cwd=up.folder, env=up.environment, capture_output=True, check=True)
        kill_and_await_another(up, "worker")
        until(lambda: told(up, "note"), "the function has run")

        steps = {one["prediction"]["model"]: one for one in manifests(up)}
        image, copy, caption = (steps[model] for model in STEPS)
        assert Counter(one["model"] for one in created(simulator)) == dict.fromkeys(STEPS, 1)
        assert not any(one.get("webhook") for one in created(simulator))
        assert [one["parent"] for one in (image, copy, caption)] == [None, image["id"], copy["id"]]
        assert [one["source"] for one in (image, copy, caption)] == ["reconcile"] * 3
        assert stored(up, copy) == stored(up, image)
        text = f"caption: a line, {len(stored(up, image))} bytes"
        assert (up.folder / "noted" / caption["id"]).read_text() == stored(up, caption).decode() == text
        assert up.redis().exists(AWAITED_HERE) == 0
        assert up.stop() == 0
    finally:
        up.clear()


def test_a_loop_is_cut(tmp_path: Path, api: ApiHost, simulator: Simulator, client: Client) -> None:
    up = launched(tmp_path, api, LOOP)
    try:
        up.start()
        client.models.predictions.create(
            STEPS[2], {"prompt": "a", "seconds": 0.1}, webhook=up.hook, webhook_events_filter=["completed"]
        )
        dead = "dead"
        until(lambda: any(one["outcome"] == dead for one in told(up, "again").values()), "the line ends")
        assert len(created(simulator)) == 11
        command = [OUTKEEP, "ls", "--failed"]
        failed = forked.run(
            command, cwd=up.folder, env=up.environment, capture_output=True, text=True, check=True
        )
        assert "follow_up_too_deep" in failed.stdout
    finally:
        up.clear()
