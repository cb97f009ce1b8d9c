"""Predictions created with the official client: by the simulator, and by hosts that answer badly."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import OutkeepError, Permanent, Transient
from app.core.names import Kind
from app.core.request import Model
from app.replicate.creation import UNCERTAIN, Creator, creating
from app.simulator import Simulator
from app.simulator.models import version_id
from tests.raw_host import RawHost, ok, raw_host

HOOK = "http://127.0.0.1:9/hook?outkeep_context=x"
IMAGE = Model("outkeep/image")

Call = Callable[[Creator], Awaitable[Any]]


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(retry_delays=()) as running:
        yield running


def at(simulator: Simulator, call: Call) -> Any:
    """What a call of the simulator gives."""

    async def scenario() -> Any:
        async with creating(simulator.url, simulator.token) as creator:
            return await call(creator)

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("model", "runs"),
    [
        (IMAGE, "outkeep/image"),
        (Model("", version_id("outkeep/caption")), "outkeep/caption"),
        (Model("outkeep/llama", is_deployment=True), "outkeep/llama"),
        (Model("outkeep/community"), "outkeep/community"),
    ],
)
def test_every_way_leads_to_a_prediction(simulator: Simulator, model: Model, runs: str) -> None:
    given = {"prompt": "x"}
    raw = at(simulator, lambda creator: creator.create(model, given, webhook=HOOK, events=["completed"]))
    assert simulator.object(Kind.PREDICTION, raw["id"])["model"] == raw["model"] == runs
    assert (raw["webhook"], raw["webhook_events_filter"]) == (HOOK, ["completed"])
    assert raw["input"] == given


def test_without_a_webhook_none_is_asked_for(simulator: Simulator) -> None:
    raw = at(simulator, lambda creator: creator.create(IMAGE, {}, webhook=None, events=["completed"]))
    assert "webhook" not in raw


def test_a_file_is_uploaded_whole(simulator: Simulator, tmp_path: Path) -> None:
    file = tmp_path / "in.png"
    content = bytes(range(256)) * 5000
    file.write_bytes(content)

    async def call(creator: Creator) -> Any:
        url = await creator.upload(file, name="mine.png", media_type=None)
        return await creator.create(Model("outkeep/copy"), {"image": url}, webhook=None, events=[])

    raw = at(simulator, call)
    output = simulator.wait_for_end(Kind.PREDICTION, raw["id"])["output"]
    assert output.endswith("/mine.png")


def test_a_prediction_can_be_canceled(simulator: Simulator) -> None:
    async def call(creator: Creator) -> Any:
        raw = await creator.create(Model("outkeep/slow"), {}, webhook=None, events=[])
        return await creator.cancel(raw["id"])

    assert at(simulator, call)["status"] == "canceled"


def ask(call: Call, *answers: bytes) -> tuple[Any, RawHost]:
    """What a call gives or raises when the API answers so, and what that API saw."""

    async def scenario() -> tuple[Any, RawHost]:
        async with (
            raw_host(*answers) as host,
            creating(f"http://127.0.0.1:{host.port}", "canary-token") as creator,
        ):
            try:
                return await call(creator), host
            except OutkeepError as error:
                return error, host

    return asyncio.run(scenario())


def create(creator: Creator) -> Awaitable[Any]:
    return creator.create(Model("owner/name"), {}, webhook=None, events=[])


@pytest.mark.parametrize(
    "odd",
    [
        {"id": "a", "status": "aborted"},
        {"id": "a", "status": "starting", "version": None, "model": None},
        {"id": "a", "status": "a word of tomorrow", "input": [], "urls": 7},
    ],
)
def test_an_object_that_the_client_refuses_is_created_all_the_same(odd: dict[str, Any]) -> None:
    created, host = ask(create, ok(json.dumps(odd).encode(), status="201 Created"))
    assert created == odd
    assert host.connections == 1


PROBLEM = json.dumps({"title": "t", "detail": "why it is", "status": 400}).encode()


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (ok(PROBLEM, status="401 Unauthorized"), Permanent, "api_refused"),
        (ok(PROBLEM, status="402 Payment Required"), Permanent, "api_unpaid"),
        (ok(PROBLEM, status="422 Unprocessable"), Permanent, "api_rejected"),
        (ok(PROBLEM, "Retry-After: 7", status="429 Too Many Requests"), Transient, "api_busy"),
    ],
)
def test_a_creation_that_is_refused_is_sent_once_and_says_why(
    answer: bytes, kind: type[OutkeepError], code: str
) -> None:
    error, host = ask(create, answer)
    assert (type(error), error.code) == (kind, code)
    assert "canary-token" not in error.message
    assert host.connections == 1
    assert b"authorization: bearer canary-token" in host.heads[0].lower()


@pytest.mark.parametrize(
    "answer",
    [
        ok(b"<html>", status="502 Bad Gateway"),
        ok(b"<html>"),
        ok(b"[]"),
        ok(b"{}"),
        ok(b'{"id": 7}'),
        ok(b"", "Location: http://127.0.0.1:1/", status="302 Found"),
        b"",
        b"nonsense\r\n\r\n",
    ],
)
def test_an_answer_that_tells_nothing_leaves_it_open_and_nothing_is_sent_twice(answer: bytes) -> None:
    error, host = ask(create, answer)
    assert isinstance(error, Transient)
    assert error.code in UNCERTAIN
    assert host.connections == 1


def test_an_upload_without_a_url_is_none(tmp_path: Path) -> None:
    file = tmp_path / "in.png"
    file.write_bytes(b"x")
    error, _ = ask(lambda creator: creator.upload(file, name="in.png", media_type=None), ok(b'{"id": "a"}'))
    assert (type(error), error.code) == (Transient, "api_unanswered")


def test_a_model_without_any_version_is_absent() -> None:
    absent = ok(PROBLEM, "Connection: close", status="404 Not Found")
    error, host = ask(create, absent, ok(b'{"latest_version": null}'))
    assert (error.code, error.message) == ("api_absent", "model owner/name has no version that could run")
    assert [head.split()[0] for head in host.heads] == [b"POST", b"GET"]


def test_calls_at_once_each_get_their_own_answer(simulator: Simulator) -> None:
    async def call(creator: Creator) -> Any:
        return await asyncio.gather(
            *(creator.create(IMAGE, {"prompt": str(number)}, webhook=None, events=[]) for number in range(20))
        )

    created = at(simulator, call)
    assert [raw["input"]["prompt"] for raw in created] == [str(number) for number in range(20)]
