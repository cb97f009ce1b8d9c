"""The official client, unchanged, through each flow of its own getting-started page, with Outkeep in between.

Replicate is simulated over https, since the client makes `FileOutput`s of such URLs only.
"""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from replicate.client import Client
from replicate.exceptions import ModelError
from replicate.helpers import FileOutput

from app.simulator import Simulator
from app.simulator import pictures as media
from app.simulator.models import version_id
from tests.e2e.recorder import Recorder
from tests.e2e.running import Up, running_up
from tests.raw_host import self_signed

pytestmark = pytest.mark.slow

PICTURE = media.png("a fridge")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A certificate for `localhost` that everything here trusts, as it would a public one."""
    folder = tmp_path_factory.mktemp("tls")
    self_signed(folder, "localhost")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SSL_CERT_FILE", str(folder / "certificate.pem"))
        yield folder / "certificate.pem"


@pytest.fixture(scope="module")
def simulator(certificate: Path) -> Iterator[Simulator]:
    with Simulator(host="localhost", certificate=certificate) as running:
        yield running


@pytest.fixture(scope="module")
def up(
    tmp_path_factory: pytest.TempPathFactory, simulator: Simulator, downstream: Recorder, certificate: Path
) -> Iterator[Up]:
    settings = {
        "OUTKEEP_KEEP_INPUTS": "true",
        "OUTKEEP_OUTPUT_HOSTS": simulator.url,
        "REPLICATE_API_TOKEN": simulator.token,
        "REPLICATE_BASE_URL": simulator.url,
        "REPLICATE_WEBHOOK_SECRET": simulator.secret,
        "SSL_CERT_FILE": str(certificate),
    }
    folder = tmp_path_factory.mktemp("up")
    with running_up(folder, handlers=downstream.handler(), settings=settings) as running:
        yield running


@pytest.fixture
def client(simulator: Simulator) -> Iterator[Client]:
    """It finds its way by the variables that its page names."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("REPLICATE_BASE_URL", simulator.url)
        environment.setenv("REPLICATE_API_TOKEN", simulator.token)
        official = Client()
        with official._client:
            yield official


@dataclass
class Kept:
    """What was told of a prediction, and what lies in its folder."""

    data: dict[str, Any]
    folder: Path

    def content(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    @property
    def outputs(self) -> list[bytes]:
        """The stored outputs in their order; each is what the manifest says it is."""
        return self._contents("/output")

    @property
    def inputs(self) -> list[bytes]:
        return self._contents("/input")

    def _contents(self, prefix: str) -> list[bytes]:
        manifest = json.loads(self.content("prediction.json"))
        found = []
        for file in manifest["files"]:
            assert file["error"] is None
            content = self.content(file["name"])
            assert (file["size"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
            if file["pointer"].startswith(prefix):
                found.append(content)
        return found


@dataclass
class Flow:
    """One flow: what the client is given so that Outkeep hears of it, and what Outkeep then has kept."""

    up: Up
    downstream: Recorder
    name: str

    @property
    def webhook(self) -> str:
        return f"{self.up.hook}?flow={self.name}"

    def kept(self, count: int = 1) -> list[Kept]:
        """Everything that this flow made, once it was told."""
        self.downstream.wait_for(lambda _: len(self._told()) >= count, f"{self.name} is told")
        told = self._told()
        assert len({data["id"] for data in told}) == count
        return [Kept(data, self.up.outputs / "predictions" / data["id"]) for data in told]

    def _told(self) -> list[dict[str, Any]]:
        events = [request.event["data"] for request in self.downstream.received]
        return [data for data in events if data["query"].get("flow") == self.name]


@pytest.fixture
def flow(up: Up, downstream: Recorder, request: pytest.FixtureRequest) -> Flow:
    return Flow(up, downstream, request.node.name)


def test_an_image(client: Client, flow: Flow) -> None:
    output = client.run("outkeep/image", input={"prompt": "astronaut"}, webhook=flow.webhook)
    assert isinstance(output, FileOutput)
    [kept] = flow.kept()
    assert kept.outputs == [output.read()]
    assert kept.data["output"] == "output-0.png"


def test_several_outputs(client: Client, flow: Flow) -> None:
    outputs = client.run(
        "outkeep/images", input={"prompt": "the four seasons", "num_outputs": 4}, webhook=flow.webhook
    )
    [kept] = flow.kept()
    read = [output.read() for output in outputs]
    assert len(set(read)) == 4
    assert kept.outputs == read
    assert kept.outputs == [b"".join(output) for output in outputs]


def test_an_inline_output(client: Client, flow: Flow) -> None:
    output = client.run("outkeep/inline", input={"prompt": "small"}, webhook=flow.webhook)
    assert isinstance(output, FileOutput)
    assert output.url.startswith("data:")
    [kept] = flow.kept()
    assert kept.outputs == [output.read()]


def test_streamed_text(client: Client, flow: Flow) -> None:
    events = client.stream("outkeep/llama", input={"prompt": "a haiku about llamas"}, webhook=flow.webhook)
    text = "".join(str(event) for event in events)
    assert text == "A river of light, and no bridge."
    [kept] = flow.kept()
    assert kept.content("output.txt") == text.encode()
    # Whole as well: token by token, as it came.
    assert "".join(kept.data["output"]) == text
    assert len(kept.data["output"]) == 10


def test_text_of_a_prediction_that_is_streamed_later(client: Client, flow: Flow) -> None:
    prediction = client.predictions.create(
        model="outkeep/llama",
        input={"prompt": "a haiku", "num_outputs": 25},
        stream=True,
        webhook=flow.webhook,
        webhook_events_filter=["start", "output", "completed"],
    )
    text = "".join(map(str, prediction.stream()))
    [kept] = flow.kept()
    assert kept.data["id"] == prediction.id
    assert kept.outputs == [text.encode()]


def test_output_of_a_running_model(client: Client, flow: Flow) -> None:
    version = version_id("outkeep/llama")
    tokens = client.run(f"outkeep/llama:{version}", input={}, wait=False, webhook=flow.webhook)
    text = "".join(tokens)
    [kept] = flow.kept()
    assert kept.outputs == [text.encode()]


def test_a_local_file_as_input(client: Client, flow: Flow, tmp_path: Path) -> None:
    path = tmp_path / "mystery.png"
    path.write_bytes(PICTURE)
    version = version_id("outkeep/copy")
    with path.open("rb") as file:
        output = client.run(f"outkeep/copy:{version}", input={"image": file}, webhook=flow.webhook)
    assert isinstance(output, FileOutput)
    [kept] = flow.kept()
    assert kept.outputs == [output.read()] == [PICTURE]
    # It was uploaded, and opened again with the token.
    assert kept.inputs == [PICTURE]
    assert [file["pointer"] for file in kept.data["files"]] == ["/output", "/input/image"]


def test_a_url_as_input(client: Client, flow: Flow, simulator: Simulator) -> None:
    url = simulator.add_file("fridge.png", PICTURE)
    output = client.run("outkeep/copy", input={"image": url}, webhook=flow.webhook)
    assert isinstance(output, FileOutput)
    [kept] = flow.kept()
    assert kept.outputs == [output.read()] == [PICTURE]
    assert kept.inputs == [PICTURE]
    assert kept.data["files"][1]["source"] == url


def test_in_the_background_with_a_webhook(client: Client, flow: Flow) -> None:
    version = client.models.get("outkeep/community").versions.get(version_id("outkeep/community"))
    prediction = client.predictions.create(
        version=version,
        input={"prompt": "an underwater submarine"},
        webhook=flow.webhook,
        webhook_events_filter=["completed"],
    )
    prediction.wait()
    [kept] = flow.kept()
    assert (kept.data["id"], kept.data["logs"]) == (prediction.id, prediction.logs)
    assert kept.outputs == [FileOutput(str(prediction.output), client).read()]


def test_several_at_once(simulator: Simulator, client: Client, flow: Flow) -> None:
    prompts = [f"a chariot pulled by {count} unicorns" for count in ("two", "four", "six", "eight")]

    async def scenario() -> list[bytes]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    client.async_run("outkeep/image", input={"prompt": prompt}, webhook=flow.webhook)
                )
                for prompt in prompts
            ]
        outputs = [task.result() for task in tasks]
        read = [await output.aread() for output in outputs if isinstance(output, FileOutput)]
        await client._async_client.aclose()
        return read

    read = asyncio.run(scenario())
    by_prompt = {kept.data["input"]["prompt"]: kept for kept in flow.kept(4)}
    assert [by_prompt[prompt].outputs for prompt in prompts] == [[content] for content in read]


def test_a_pipeline(client: Client, flow: Flow) -> None:
    image = client.run("outkeep/image", input={"prompt": "an avocado armchair"}, webhook=flow.webhook)
    assert isinstance(image, FileOutput)
    copy = client.run("outkeep/copy", input={"image": image.url}, webhook=flow.webhook)
    assert isinstance(copy, FileOutput)
    first, second = sorted(flow.kept(2), key=lambda kept: kept.data["created_at"])
    assert first.outputs == second.inputs == second.outputs == [copy.read()]


def test_a_model_that_fails(client: Client, flow: Flow) -> None:
    with pytest.raises(ModelError) as raised:
        client.run("outkeep/fails", input={}, webhook=flow.webhook)
    [kept] = flow.kept()
    assert (kept.data["id"], kept.data["status"]) == (raised.value.prediction.id, "failed")
    assert kept.data["error"] == "CUDA out of memory"


def test_a_prediction_that_is_canceled(client: Client, flow: Flow) -> None:
    prediction = client.predictions.create(model="outkeep/slow", input={}, webhook=flow.webhook)
    prediction.cancel()
    assert prediction.status == "canceled"
    [kept] = flow.kept()
    assert (kept.data["id"], kept.data["status"]) == (prediction.id, "canceled")


def test_the_list_of_predictions(client: Client, flow: Flow) -> None:
    prediction = client.predictions.create(model="outkeep/caption", input={}, webhook=flow.webhook)
    [kept] = flow.kept()
    assert prediction.id in {listed.id for listed in client.predictions.list()}
    assert kept.outputs == [b"caption: "]
