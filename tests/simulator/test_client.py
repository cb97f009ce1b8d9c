"""The official client works on the simulator."""

import io
import re
import zipfile

import httpx
import pytest
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError
from replicate.helpers import FileOutput
from replicate.pagination import paginate

from app.core.names import Kind
from app.simulator import Simulator
from app.simulator.ledger import event
from app.simulator.models import MODELS, version_id

KEYS = {
    *("completed_at", "created_at", "data_removed", "error", "id", "input", "logs", "metrics"),
    *("model", "output", "started_at", "status", "urls", "version"),
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def test_a_prediction_by_model_starts_and_succeeds(client: Client, simulator: Simulator) -> None:
    prediction = client.predictions.create(model="outkeep/image", input={"prompt": "a hat"})
    assert [prediction.status, prediction.model, prediction.version] == [
        "starting",
        "outkeep/image",
        "hidden",
    ]
    prediction.wait()
    assert [prediction.status] == ["succeeded"]
    assert str(prediction.output).startswith(f"{simulator.url}/xezq/")
    assert prediction.progress is not None
    assert prediction.progress.percentage == 1.0


def test_an_object_has_exactly_the_recorded_keys(client: Client, simulator: Simulator) -> None:
    created = client.predictions.create(model="outkeep/caption", input={"prompt": "x"})
    shown = simulator.wait_for_end(Kind.PREDICTION, created.id)
    assert set(shown) == KEYS
    assert re.fullmatch(r"[0-9a-hjkmnp-tv-z]{26}", shown["id"])
    assert all(TIME.fullmatch(shown[key]) for key in ("created_at", "started_at", "completed_at"))
    assert shown["metrics"]["predict_time"] > 0
    assert set(shown["urls"]) == {"get", "cancel", "web"}


def test_a_prediction_by_version_runs_the_model_of_that_version(client: Client) -> None:
    prediction = client.predictions.create(version=version_id("outkeep/caption"), input={"prompt": "a"})
    prediction.wait()
    assert (prediction.model, prediction.output) == ("outkeep/caption", "caption: a")
    assert prediction.version == version_id("outkeep/caption")


def test_a_prediction_by_deployment_runs_the_model_of_its_name(client: Client) -> None:
    prediction = client.deployments.predictions.create("outkeep/llama", input={"num_outputs": 2})
    prediction.wait()
    assert prediction.output == ["A", " river"]
    assert re.fullmatch(r"dp-[0-9a-f]{32}", prediction.version)


def test_an_unknown_model_draws_one_image(client: Client) -> None:
    assert str(client.run("nobody/nothing-known", input={})).endswith("/out-0.png")


def test_run_returns_the_output_of_an_image_model(client: Client) -> None:
    outputs = client.run("outkeep/images", input={"num_outputs": 3})
    assert [url.rsplit("/")[-1] for url in outputs] == ["out-0.png", "out-1.png", "out-2.png"]


def test_run_with_a_version_iterates_over_tokens(client: Client) -> None:
    tokens = client.run(f"outkeep/llama:{version_id('outkeep/llama')}", input={})
    assert "".join(tokens) == "A river of light, and no bridge."


def test_run_reads_an_inline_file(client: Client) -> None:
    inline = client.run("outkeep/inline", input={})
    assert isinstance(inline, FileOutput)
    assert inline.read().startswith(b"\x89PNG")


def test_run_raises_the_error_of_a_failed_model(client: Client) -> None:
    with pytest.raises(ModelError, match="CUDA out of memory"):
        client.run("outkeep/fails", input={})


def test_wait_answers_the_fresh_object_when_time_is_up(simulator: Simulator, http: httpx.Client) -> None:
    answer = http.post(
        "/v1/models/outkeep/slow/predictions",
        json={"input": {}},
        headers={"authorization": f"Bearer {simulator.token}", "prefer": "wait=1"},
    )
    assert (answer.status_code, answer.json()["status"]) == (201, "starting")


def test_a_running_prediction_can_be_canceled(client: Client, simulator: Simulator) -> None:
    prediction = client.predictions.create(model="outkeep/slow", input={})
    prediction.cancel()
    assert prediction.status == "canceled"
    assert prediction.completed_at is not None
    assert prediction.output is None
    assert client.predictions.cancel(prediction.id).completed_at == prediction.completed_at


def test_an_aborted_prediction_never_started(client: Client, simulator: Simulator) -> None:
    created = client.predictions.create(model="outkeep/aborts", input={})
    shown = simulator.wait_for_end(Kind.PREDICTION, created.id)
    assert (shown["status"], shown["started_at"]) == ("aborted", None)


def test_a_list_comes_newest_first_in_pages_of_a_hundred() -> None:
    with Simulator() as own:
        ids = [f"{number:026}" for number in range(205)]
        for identity in ids:
            own.finish(
                Kind.PREDICTION,
                {"id": identity, "model": "a/b", "version": "hidden", "status": "succeeded"}
                | {"created_at": "2026-01-01T00:00:00Z", "logs": "never in a list", "input": {}},
            )
        official = Client(api_token=own.token, base_url=own.url)
        pages = list(paginate(official.predictions.list))
        official._client.close()
    assert [len(page) for page in pages] == [100, 100, 5]
    assert [item.id for page in pages for item in page] == ids[::-1]
    assert {item.logs for page in pages for item in page} == {None}
    assert pages[0].next is not None
    assert pages[0].next.startswith(f"{own.url}/v1/predictions?")


def test_a_training_makes_a_version_and_weights(client: Client, http: httpx.Client) -> None:
    training = client.trainings.create(
        model="outkeep/train",
        version=version_id("outkeep/train"),
        input={"input_images": "https://example.com/data.zip"},
        destination="me/mine",
    )
    while training.status not in {"succeeded", "failed"}:
        training = client.trainings.get(training.id)
    assert training.destination == "me/mine"
    assert training.output is not None
    assert training.output["version"].startswith("me/mine:")
    assert http.get(training.output["weights"]).headers["content-type"] == "application/x-tar"
    assert training.id in [item.id for item in client.trainings.list()]
    with pytest.raises(ReplicateError):
        client.predictions.get(training.id)


def test_a_training_can_be_canceled(client: Client) -> None:
    training = client.trainings.create(
        model="outkeep/slow", version="1" * 64, input={}, destination="me/mine"
    )
    assert client.trainings.cancel(training.id).status == "canceled"


def test_models_and_the_webhook_secret_can_be_read(client: Client, simulator: Simulator) -> None:
    model = client.models.get("outkeep/llama")
    assert model.latest_version is not None
    assert model.latest_version.id == version_id("outkeep/llama")
    assert client.webhooks.default.secret().key == simulator.secret


def test_an_upload_is_described_byte_for_byte(client: Client) -> None:
    content = b"a\r\n\r\nb\0--c\r\n"
    uploaded = client.files.create(io.BytesIO(content), filename="in.bin")
    assert (uploaded.name, uploaded.size) == ("in.bin", len(content))
    assert client.files.get(uploaded.id) == uploaded


@pytest.mark.parametrize("model", sorted(MODELS.keys() - {"outkeep/slow"}))
def test_every_model_ends_as_its_table_says(model: str, client: Client, simulator: Simulator) -> None:
    created = client.predictions.create(version=version_id(model), input={"prompt": "p"})
    assert simulator.wait_for_end(Kind.PREDICTION, created.id)["status"] == MODELS[model].status


def test_a_model_that_is_not_official_runs_by_version_alone(client: Client) -> None:
    with pytest.raises(ReplicateError, match="404"):
        client.predictions.create(model="outkeep/community", input={})
    version = client.models.get("outkeep/community").latest_version
    assert version is not None
    assert [one.id for one in client.models.get("outkeep/community").versions.list()] == [version.id]
    prediction = client.predictions.create(version=version, input={})
    prediction.wait()
    assert prediction.status == "succeeded"


def test_a_model_that_is_not_there_is_absent(client: Client) -> None:
    with pytest.raises(ReplicateError, match="404"):
        client.models.get("outkeep/misspelt")
    with pytest.raises(ReplicateError, match="404"):
        client.predictions.create(model="outkeep/misspelt", input={})


def test_models_and_deployments_are_listed(client: Client) -> None:
    assert {f"{model.owner}/{model.name}" for model in client.models.list()} == MODELS.keys()
    assert {f"{one.owner}/{one.name}" for one in client.deployments.list()} == MODELS.keys()
    release = client.deployments.get("outkeep/caption").current_release
    assert release is not None
    assert (release.model, release.version) == ("outkeep/caption", version_id("outkeep/caption"))


def test_text_is_streamed_token_by_token(client: Client) -> None:
    events = list(client.stream("outkeep/llama", input={"num_outputs": 5}))
    assert [str(event) for event in events[:-1]] == ["A", " river", " of", "", " light"]
    assert events[-1].event.value == "done"


def test_a_stream_tells_all_whenever_it_is_opened(client: Client) -> None:
    prediction = client.predictions.create(model="outkeep/llama", input={}, stream=True)
    prediction.wait()
    assert "".join(map(str, prediction.stream())) == "A river of light, and no bridge."


def test_a_stream_ends_when_its_prediction_is_canceled(client: Client) -> None:
    prediction = client.predictions.create(
        model="outkeep/llama", input={"seconds": 600, "num_outputs": 250}, stream=True
    )
    prediction.cancel()
    assert [event.data for event in prediction.stream()] == ['{"reason": "canceled"}']


def test_a_model_without_text_has_no_stream(client: Client) -> None:
    with pytest.raises(ReplicateError):
        list(client.stream("outkeep/image", input={}))


def test_lines_of_a_token_reach_the_client_whole() -> None:
    assert event("output", "a:0", "one\n two\n") == (
        b"event: output\nid: a:0\ndata: one\ndata:  two\ndata: \n\n"
    )


def test_a_file_that_came_in_can_go_out_again(client: Client, http: httpx.Client) -> None:
    content = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    url = str(client.run("outkeep/copy", input={"image": io.BytesIO(content)}))
    assert http.get(url).content == content
    assert http.get(str(client.run("outkeep/copy", input={"image": url}))).content == content


def test_uploads_can_be_listed_read_and_deleted(
    client: Client, simulator: Simulator, http: httpx.Client
) -> None:
    uploaded = client.files.create(io.BytesIO(b"content"), filename="in.bin")
    assert uploaded.id in {one.id for one in client.files.list()}
    path = f"/v1/files/{uploaded.id}/download"
    assert http.get(path).status_code == 401
    answer = http.get(path, headers={"authorization": f"Bearer {simulator.token}"})
    assert (answer.content, answer.headers["content-type"]) == (b"content", "application/octet-stream")
    assert client.files.delete(uploaded.id)
    with pytest.raises(ReplicateError, match="404"):
        client.files.get(uploaded.id)


def test_mixed_outputs_hold_real_files_and_plain_values(client: Client, http: httpx.Client) -> None:
    output = client.run("outkeep/mixed", input={"prompt": "p"})
    assert isinstance(output, dict)
    assert output["scores"] == [0.25, 0.5, None, True]
    archive = zipfile.ZipFile(io.BytesIO(http.get(output["archive"]).content))
    assert archive.namelist() == ["readme.txt"]
    assert http.get(output["layers"]["front"]["mask"]["image"]).status_code == 200
