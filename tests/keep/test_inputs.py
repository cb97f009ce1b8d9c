"""Inputs kept beside outputs: against the simulator, and against hosts that answer badly."""

import asyncio
import base64
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from replicate.client import Client

from app.core import event as events
from app.core.lifecycle import State
from app.core.links import file_path, sign_path
from app.core.manifest import KeptFile, Manifest, Receipt
from app.core.names import Kind
from app.core.prediction import parse
from app.simulator import Simulator
from tests.keep.desk import ID, JPEG, KEYS, PNG, PUBLIC_URL, ZIP, Desk
from tests.raw_host import RawHost, Script, ok, raw_host, then_silence

FILE = "cneqzikepnug6xezperrr4z55o"
TOKEN = "canary-token"


@pytest.fixture
def desk(redis: Redis, tmp_path: Path, simulator: Simulator) -> Desk:
    desk = Desk(redis, tmp_path)
    desk.trust(simulator.url)
    desk.keep_inputs(simulator.url, simulator.token)
    return desk


@pytest.fixture
def host(simulator: Simulator) -> Callable[..., str]:
    """Host a file under a name; its URL."""
    return lambda content=PNG, name="out-0.png": simulator.add_file(name, content)


def upload(simulator: Simulator, content: bytes, name: str) -> str:
    """Upload with the official client; the URL that stands in inputs then."""
    client = Client(api_token=simulator.token, base_url=simulator.url)
    with client._client:
        return client.files.create(io.BytesIO(content), filename=name).urls["get"]


def inputs_of(desk: Desk) -> list[dict[str, Any]]:
    return [file for file in desk.manifest()["files"] if file["pointer"].startswith("/input")]


def codes(desk: Desk) -> dict[str, str | None]:
    return {file["pointer"]: file["error"] for file in inputs_of(desk)}


def assert_the_output_is_told(desk: Desk) -> None:
    assert desk.manifest()["output"] == ["output-0.png"]
    assert (desk.record().state, desk.record().lost) == (State.DISPATCHED, 0)
    assert list(desk.temporary.iterdir()) == []


def then(event: asyncio.Event, answer: bytes) -> Script:
    """Set an event, and answer."""

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        event.set()
        writer.write(answer)

    return script


def once(event: asyncio.Event, answer: bytes) -> Script:
    """Answer when an event is set."""

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await event.wait()
        writer.write(answer)

    return script


async def keep_failing(desk: Desk, *answers: bytes, path: str = "/in.png") -> None:
    """Keep an input that an API answers so; the output comes when the input is asked for once more.

    So the patience, which begins then, may be short, and the reason is known all the same.
    """
    again = asyncio.Event()
    async with raw_host(*answers, then(again, answers[-1])) as api, raw_host(once(again, ok(PNG))) as files:
        base_url, outputs = (f"http://127.0.0.1:{one.port}" for one in (api, files))
        desk.trust(base_url, outputs)
        desk.keep_inputs(base_url, TOKEN, patience=0.2)
        desk.receive([f"{outputs}/out.png"], input={"image": base_url + path})
        assert await desk.run() is None


def link(
    desk: Desk, name: str = "output-0.png", *, seconds: float = 60.0, kind: Kind = Kind.PREDICTION
) -> str:
    """A link of ours to a file of the prediction `earlier`."""
    path = file_path(kind, "earlier", name)
    return PUBLIC_URL + sign_path(path, int(desk.now.timestamp() + seconds), KEYS)


def test_the_input_of_a_follow_up_is_copied_from_the_storage(desk: Desk, host: Callable[..., str]) -> None:
    desk.storage.put_bytes("predictions/earlier/output-0.png", PNG)
    desk.receive([host()], input={"image": link(desk), "gone": link(desk, "output-1.png")})
    assert desk.work() is None
    assert codes(desk) == {"/input/image": None, "/input/gone": "not_found"}
    assert desk.file("input-image-0.png") == PNG
    assert_the_output_is_told(desk)


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate", "br, gzip", None])
def test_a_copy_of_our_own_file_has_the_coding_of_the_original(
    desk: Desk, host: Callable[..., str], coding: str | None
) -> None:
    desk.storage.put_bytes("predictions/earlier/output-0.csv", b"packed")
    parent = parse(b'{"id": "earlier", "status": "succeeded", "output": "x"}', Kind.PREDICTION)
    kept = KeptFile("/output", "https://x/y.csv", "output-0.csv", "text/csv", 6, "00", encoding=coding)
    desk.storage.commit(Manifest(parent, (kept,), "output-0.csv", Receipt(desk.now, None), desk.now))
    desk.receive([host()], input={"table": link(desk, "output-0.csv")})
    assert desk.work() is None
    [file] = inputs_of(desk)
    assert (file["name"], file.get("encoding")) == ("input-table-0.csv", coding)
    assert desk.file("input-table-0.csv") == b"packed"


def test_a_copy_is_made_though_the_manifest_beside_the_file_is_torn(
    desk: Desk, host: Callable[..., str]
) -> None:
    desk.storage.put_bytes("predictions/earlier/output-0.csv", b"packed")
    desk.storage.put_bytes("predictions/earlier/prediction.json", b'{"files": [{"encoding": "gz')
    desk.receive([host()], input={"table": link(desk, "output-0.csv")})
    assert desk.work() is None
    assert codes(desk) == {"/input/table": None}


def test_only_a_link_that_we_have_signed_opens_our_storage(desk: Desk, host: Callable[..., str]) -> None:
    desk.storage.put_bytes("predictions/earlier/output-0.png", PNG)
    good = link(desk)
    refused = {
        "expired": link(desk, seconds=-1.0),
        "unsigned": good.partition("?")[0],
        "forged": good[:-1] + ("A" if good[-1] != "A" else "B"),
        "another": good.replace("output-0", "output-1"),
        "elsewhere": good.replace("outkeep.example", "outkeep.example.attacker.example"),
        "more": f"{good}&x=1",
    }
    desk.receive([host()], input=refused)
    assert desk.work() is None
    assert codes(desk) == {f"/input/{name}": "host_refused" for name in refused}
    assert [name for name in desk.files() if "input" in name] == []


def test_inputs_are_kept_after_the_outputs_with_pointers(desk: Desk, host: Callable[..., str]) -> None:
    given = {"prompt": "x", "image": host(JPEG, "in.jpg"), "masks": [host(PNG), host(ZIP, "b.zip")]}
    desk.receive([host()], input=given)
    assert desk.work() is None
    assert [(file["pointer"], file["name"]) for file in desk.manifest()["files"]] == [
        ("/output/0", "output-0.png"),
        ("/input/image", "input-image-0.jpg"),
        ("/input/masks/0", "input-masks-0.png"),
        ("/input/masks/1", "input-masks-1.zip"),
    ]
    assert inputs_of(desk)[0] == {
        "name": "input-image-0.jpg",
        "pointer": "/input/image",
        "source": given["image"],
        "media_type": "image/jpeg",
        "size": len(JPEG),
        "sha256": hashlib.sha256(JPEG).hexdigest(),
        "error": None,
    }
    assert [desk.file(name) for name in ("input-image-0.jpg", "input-masks-1.zip")] == [JPEG, ZIP]
    assert desk.record().files == 4
    assert_the_output_is_told(desk)


def test_an_inline_input_is_kept(desk: Desk, host: Callable[..., str]) -> None:
    uri = f"data:image/jpeg;base64,{base64.b64encode(JPEG).decode()}"
    desk.receive([host()], input={"image": uri})
    desk.work()
    [kept] = inputs_of(desk)
    assert (kept["name"], kept["source"]) == (
        "input-image-0.jpg",
        f"data:image/jpeg;sha256={hashlib.sha256(JPEG).hexdigest()}",
    )
    assert desk.file("input-image-0.jpg") == JPEG


def test_an_uploaded_file_is_kept_under_the_extension_of_its_name(
    desk: Desk, simulator: Simulator, host: Callable[..., str]
) -> None:
    words = b"v 0 0 0\n"  # without a signature of its own
    given = {"mesh": upload(simulator, words, "cube.obj"), "image": upload(simulator, JPEG, "in.jpg")}
    desk.receive([host()], input=given)
    desk.work()
    assert [file["name"] for file in inputs_of(desk)] == ["input-mesh-0.obj", "input-image-0.jpg"]
    assert [desk.file("input-mesh-0.obj"), desk.file("input-image-0.jpg")] == [words, JPEG]
    assert_the_output_is_told(desk)


def test_text_comes_between_outputs_and_inputs(desk: Desk, host: Callable[..., str]) -> None:
    desk.receive(["A", " river"], input={"image": host()})
    desk.work()
    assert [file["name"] for file in desk.manifest()["files"]] == ["output.txt", "input-image-0.png"]


def test_the_inputs_of_a_training_are_kept(desk: Desk, host: Callable[..., str]) -> None:
    output = {"version": "me/mine:1", "weights": host(ZIP, "weights.zip")}
    desk.receive(output, kind=Kind.TRAINING, input={"input_images": host(ZIP, "images.zip")})
    desk.work(Kind.TRAINING)
    names = [file["name"] for file in desk.manifest(Kind.TRAINING)["files"]]
    assert names == ["output-0.zip", "input-input_images-0.zip"]


def test_an_input_on_a_foreign_host_is_told_at_once_and_harms_nothing(
    desk: Desk, host: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    desk.receive([host()], input={"image": "https://example.com/photo.jpg"})
    assert desk.work() is None
    assert codes(desk) == {"/input/image": "host_refused"}
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    manifest = desk.storage.read_manifest(Kind.PREDICTION, ID)
    assert manifest is not None
    assert (manifest.lost, len(manifest.lost_inputs)) == ((), 1)
    data = events.build(manifest, lambda name: name)["data"]
    assert [file["name"] for file in data["files"]] == ["output-0.png"]
    assert [(one["pointer"], one["error"]) for one in data["lost"]] == [("/input/image", "host_refused")]
    assert_the_output_is_told(desk)


def test_an_input_that_hangs_holds_up_the_outputs_no_longer_than_its_patience(
    desk: Desk, host: Callable[..., str]
) -> None:
    async def scenario() -> None:
        async with raw_host(then_silence(ok(PNG)[:-10])) as hanging:
            url = f"http://127.0.0.1:{hanging.port}/in.png"
            desk.trust(f"http://127.0.0.1:{hanging.port}", origin_of(host()))
            desk.keep_inputs(patience=0.2)
            desk.receive([host()], input={"image": url})
            assert await asyncio.wait_for(desk.run(), 20) is None

    asyncio.run(scenario())
    assert codes(desk) == {"/input/image": "input_late"}
    assert_the_output_is_told(desk)


def origin_of(url: str) -> str:
    return "/".join(url.split("/")[:3])


def test_an_input_that_fails_once_is_tried_again(desk: Desk, host: Callable[..., str]) -> None:
    async def scenario() -> None:
        async with raw_host(ok(b"", status="503 Busy"), ok(PNG)) as shaky:
            desk.trust(f"http://127.0.0.1:{shaky.port}", origin_of(host()))
            desk.receive([host()], input={"image": f"http://127.0.0.1:{shaky.port}/in.png"})
            assert await desk.run() is None

    asyncio.run(scenario())
    assert codes(desk) == {"/input/image": None}


def test_an_input_that_goes_on_failing_is_told_with_its_reason(desk: Desk) -> None:
    asyncio.run(keep_failing(desk, ok(b"", status="503 Busy")))
    assert codes(desk) == {"/input/image": "server_error"}
    assert_the_output_is_told(desk)


def test_an_input_that_is_kept_is_not_asked_for_again_while_outputs_are_tried(desk: Desk) -> None:
    async def scenario() -> int:
        async with raw_host(ok(PNG)) as good, raw_host(ok(b"", status="503 Busy"), ok(PNG)) as shaky:
            desk.trust(*(f"http://127.0.0.1:{one.port}" for one in (good, shaky)))
            desk.receive(
                [f"http://127.0.0.1:{shaky.port}/out.png"],
                input={"image": f"http://127.0.0.1:{good.port}/in.png"},
            )
            wait = await desk.run()
            assert wait is not None
            desk.forward(wait)
            assert await desk.run() is None
            return good.connections

    assert asyncio.run(scenario()) == 1
    assert codes(desk) == {"/input/image": None}
    assert_the_output_is_told(desk)


def test_the_storage_is_told_apart_from_the_host_of_an_input(desk: Desk) -> None:
    """A folder stands where the input should: only that write fails."""
    (desk.outputs / "predictions" / ID / "input-image-0.png" / "x").mkdir(parents=True)
    asyncio.run(keep_failing(desk, ok(PNG)))
    [code] = codes(desk).values()
    assert (code or "").startswith("storage_")
    assert desk.manifest()["output"] == ["output-0.png"]


def test_without_the_setting_no_input_is_asked_for(
    redis: Redis, tmp_path: Path, simulator: Simulator, host: Callable[..., str]
) -> None:
    desk = Desk(redis, tmp_path)
    desk.trust(simulator.url)
    given = host()
    desk.receive([host()], input={"image": given})
    desk.work()
    assert inputs_of(desk) == []
    assert simulator.downloads(given) == 0


# Uploads, at an API that answers as told.

DESCRIPTION = {
    "id": FILE,
    "name": "in.png",
    "size": len(PNG),
    "checksums": {"sha256": hashlib.sha256(PNG).hexdigest()},
    "urls": {"get": "..."},
}


def described(**changes: Any) -> bytes:
    return ok(json.dumps(DESCRIPTION | changes).encode(), "Content-Type: application/json")


def ask(desk: Desk, host: Callable[..., str], *answers: bytes) -> RawHost:
    """Keep one uploaded input from an API with these answers; what that API saw."""

    async def scenario() -> RawHost:
        async with raw_host(*answers) as api:
            base_url = f"http://127.0.0.1:{api.port}"
            desk.keep_inputs(base_url, TOKEN)
            desk.receive([host()], input={"image": f"{base_url}/v1/files/{FILE}"})
            assert await desk.run() is None
        return api

    return asyncio.run(scenario())


def test_the_file_is_asked_for_once_it_is_described(desk: Desk, host: Callable[..., str]) -> None:
    api = ask(desk, host, described(), ok(PNG))
    assert [head.split()[1] for head in api.heads] == [
        f"/v1/files/{FILE}".encode(),
        f"/v1/files/{FILE}/download".encode(),
    ]
    assert all(f"authorization: bearer {TOKEN}".encode() in head.lower() for head in api.heads)
    assert codes(desk) == {"/input/image": None}
    assert desk.file("input-image-0.png") == PNG
    assert_the_output_is_told(desk)


def test_a_file_that_is_given_at_once_is_kept(desk: Desk, host: Callable[..., str]) -> None:
    assert len(ask(desk, host, ok(PNG)).heads) == 1
    assert desk.file("input-image-0.png") == PNG


@pytest.mark.parametrize("changes", [{"size": 7}, {"checksums": {"sha256": "ab" * 32}}])
def test_what_does_not_fit_its_description_is_not_kept(
    desk: Desk, host: Callable[..., str], changes: dict[str, Any]
) -> None:
    ask(desk, host, described(**changes), ok(PNG))
    assert codes(desk) == {"/input/image": "upload_mismatch"}
    assert_the_output_is_told(desk)


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ([described(), ok(b"{}", status="403 Forbidden")], "forbidden"),
        ([described(), ok(b"{}", status="400 Bad Request")], "status_unexpected"),
    ],
)
def test_an_upload_that_the_api_does_not_give_is_told(desk: Desk, answers: list[bytes], code: str) -> None:
    asyncio.run(keep_failing(desk, *answers, path=f"/v1/files/{FILE}"))
    assert codes(desk) == {"/input/image": code}
    assert_the_output_is_told(desk)


@pytest.mark.parametrize("answer", [b"HTTP/1.0 200 OK\r\n\r\n" + PNG, ok(b"")])
def test_an_input_that_nothing_shows_to_be_whole_is_kept_when_it_comes_twice(
    desk: Desk, host: Callable[..., str], answer: bytes
) -> None:
    async def scenario() -> int:
        async with raw_host(answer) as inputs:
            origin = f"http://127.0.0.1:{inputs.port}"
            desk.trust(origin, "/".join(host().split("/")[:3]))
            desk.keep_inputs()
            desk.receive([host()], input={"image": f"{origin}/a.png"})
            assert await desk.run() is None
            return inputs.connections

    assert asyncio.run(scenario()) == 2
    assert codes(desk) == {"/input/image": None}


def test_an_upload_that_is_not_there_is_told(desk: Desk, host: Callable[..., str]) -> None:
    ask(desk, host, ok(b"{}", status="404 Not Found"))
    assert codes(desk) == {"/input/image": "not_found"}
    assert_the_output_is_told(desk)


def test_without_a_token_an_upload_is_not_asked_for(desk: Desk, host: Callable[..., str]) -> None:
    desk.receive([host()], input={"image": f"https://api.replicate.com/v1/files/{FILE}"})
    desk.keep_inputs(token=None)
    assert desk.work() is None
    assert codes(desk) == {"/input/image": "token_missing"}


def test_the_token_follows_no_redirect_to_another_host_and_no_other_input(
    desk: Desk, host: Callable[..., str]
) -> None:
    async def scenario() -> list[bytes]:
        async with raw_host(ok(PNG)) as files:
            elsewhere = f"http://127.0.0.1:{files.port}"
            away = ok(b"", f"Location: {elsewhere}/signed", status="302 Found")
            async with raw_host(away) as api:
                base_url = f"http://127.0.0.1:{api.port}"
                desk.keep_inputs(base_url, TOKEN)
                desk.trust(elsewhere, origin_of(host()))
                urls = [f"{base_url}/v1/files/{FILE}", f"{elsewhere}/v1/files/{FILE}"]
                desk.receive([host()], input={"images": urls})
                assert await desk.run() is None
            assert all(b"bearer canary-token" in head.lower() for head in api.heads)
            return files.heads

    heads = asyncio.run(scenario())
    assert len(heads) == 2
    assert not any(b"authorization" in head.lower() or TOKEN.encode() in head for head in heads)
    assert codes(desk) == {"/input/images/0": None, "/input/images/1": None}


def test_an_output_at_the_api_does_not_get_the_token(desk: Desk) -> None:
    async def scenario() -> int:
        async with raw_host(ok(PNG)) as api:
            base_url = f"http://127.0.0.1:{api.port}"
            desk.keep_inputs(base_url, TOKEN)
            desk.receive([f"{base_url}/v1/files/{FILE}", f"{base_url}/v1/files/{FILE}/image.png"])
            assert await desk.run() is None
            return api.connections

    assert asyncio.run(scenario()) == 0
