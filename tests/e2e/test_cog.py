"""A real Cog sends to a real `outkeep up`: what its models produce is on disk, equal, and told."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cog import Cog, UploadHost, cog, image, upload_host
from tests.e2e.recorder import Recorder, recorder
from tests.e2e.running import Up, running_up, until

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-cog-workers"


@dataclass(frozen=True)
class Stage:
    """`up` with a handler that records, and a Cog for each model."""

    up: Up
    told: Recorder
    models: dict[str, Cog]
    uploads: UploadHost

    @property
    def hook(self) -> str:
        return f"{self.up.url}/webhooks/cog"

    def manifest(self, prediction_id: str) -> dict[str, Any]:
        """What is stored once the handler has been told."""
        self.told.wait_for(lambda one: prediction_id in one.ids(), f"{prediction_id} is told")
        path = self.up.outputs / "predictions" / prediction_id / "prediction.json"
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        return manifest

    def files(self, prediction_id: str) -> list[bytes]:
        """The stored files in order."""
        folder = self.up.outputs / "predictions" / prediction_id
        return [(folder / file["name"]).read_bytes() for file in self.manifest(prediction_id)["files"]]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("cog")
    with ExitStack() as stack:
        uploads = stack.enter_context(upload_host())
        models = {
            model: stack.enter_context(cog(folder / model, model, TOKEN))
            for model in ("Several", "One", "Text")
        }
        uploading = cog(folder / "uploading", "Several", TOKEN, "--upload-url", uploads.url)
        models["Uploading"] = stack.enter_context(uploading)
        told = stack.enter_context(recorder())
        (folder / "up").mkdir()
        settings = {"OUTKEEP_COG_TOKEN": TOKEN, "OUTKEEP_OUTPUT_HOSTS": uploads.url}
        up = stack.enter_context(running_up(folder / "up", handlers=told.handler(), settings=settings))
        yield Stage(up, told, models, uploads)


def test_several_files_inside_the_webhook_are_kept_in_order(stage: Stage) -> None:
    stage.models["Several"].create("several-1", f"{stage.hook}?order=17", seed=7)

    manifest = stage.manifest("several-1")

    assert stage.files("several-1") == [image(7, number) for number in range(3)]
    assert manifest["output"] == ["output-0.png", "output-1.png", "output-2.png"]
    assert (manifest["source"], manifest["webhook_id"]) == ("cog", None)
    assert manifest["query"] == {"order": "17"}
    assert manifest["prediction"]["logs"] == "drawing\n"
    assert "input" not in manifest["prediction"]
    (request,) = stage.told.of("several-1")
    stage.told.verify(request)
    assert request.event["type"] == "prediction.succeeded"
    assert request.event["data"]["input"] is None
    assert request.event["data"]["completed_at"] is None


def test_a_single_file_is_kept(stage: Stage) -> None:
    stage.models["One"].create("one-1", stage.hook, seed=9)
    assert stage.files("one-1") == [image(9, 0)]


def test_uploaded_files_are_fetched_from_a_private_origin_that_is_listed(stage: Stage) -> None:
    stage.models["Uploading"].create("uploaded-1", stage.hook, seed=3)

    manifest = stage.manifest("uploaded-1")

    # Cog uploads at the same time and lists what is done first.
    assert sorted(stage.files("uploaded-1")) == [image(3, number) for number in range(3)]
    assert all(file["source"].startswith(stage.uploads.url) for file in manifest["files"])


def test_text_that_grows_is_joined(stage: Stage) -> None:
    stage.models["Text"].create("text-1", stage.hook, words="kept and told")
    assert stage.files("text-1") == [b"kept and told "]


def test_a_failure_is_told_with_its_reason(stage: Stage) -> None:
    stage.models["One"].create("failing-1", stage.hook, seed=0)

    manifest = stage.manifest("failing-1")

    assert manifest["files"] == []
    (request,) = stage.told.of("failing-1")
    assert request.event["type"] == "prediction.failed"
    assert "no such seed" in request.event["data"]["error"]


def test_a_prediction_that_is_canceled_while_it_runs_is_told(stage: Stage) -> None:
    text = stage.models["Text"]
    text.create("canceled-1", stage.hook, words=" ".join(["word"] * 500), pause=0.2)
    with stage.up.redis() as redis:
        until(lambda: redis.exists("outkeep:record:prediction:canceled-1"), "its progress is seen")
    text.cancel("canceled-1")

    stage.manifest("canceled-1")

    (request,) = stage.told.of("canceled-1")
    assert request.event["type"] == "prediction.canceled"
    until(text.is_ready, "the model is free again")


def test_an_id_of_cogs_own_making_is_taken(stage: Stage) -> None:
    prediction_id = stage.models["One"].create(None, stage.hook, seed=5)
    assert stage.files(prediction_id) == [image(5, 0)]


def test_an_end_that_finds_nobody_is_sent_again_by_cog_and_kept(stage: Stage) -> None:
    assert stage.up.stop() == 0
    one = stage.models["One"]
    one.create("away-1", stage.hook, seed=6)
    until(lambda: "Terminal webhook request error, retrying" in one.log.read_text(), "Cog finds nobody")
    stage.up.start()

    assert stage.files("away-1") == [image(6, 0)]


def test_a_cog_with_another_token_is_refused_and_says_so(stage: Stage, tmp_path: Path) -> None:
    with cog(tmp_path / "stranger", "One", "another") as stranger:
        stranger.create("stranger-1", stage.hook, seed=4)
        until(lambda: "non-retryable status" in stranger.log.read_text(), "Cog gives it up")
    assert not (stage.up.outputs / "predictions" / "stranger-1").exists()
    with stage.up.redis() as redis:
        assert not redis.exists("outkeep:record:prediction:stranger-1")
