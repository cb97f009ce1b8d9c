"""The whole line with outputs in a bucket: received, kept, told, and followed by a plain client."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest

from app.core.names import CLAIMS, Kind
from app.simulator import Simulator
from app.storage.store import Storage
from tests import forked
from tests.bucket import S3, FaultyProxy, Refusal, faulty_proxy
from tests.e2e.recorder import Recorder
from tests.e2e.running import Up, running_up, until
from tests.serving import PLAIN

pytestmark = pytest.mark.slow

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


@pytest.fixture(scope="module")
def proxy(s3_process: S3) -> Iterator[FaultyProxy]:
    s3_process.clear()
    with faulty_proxy(s3_process) as running:
        yield running


@pytest.fixture(scope="module")
def up(
    tmp_path_factory: pytest.TempPathFactory,
    simulator: Simulator,
    downstream: Recorder,
    proxy: FaultyProxy,
) -> Iterator[Up]:
    settings = proxy.s3.settings(
        OUTKEEP_OUTPUT_HOSTS=simulator.url, REPLICATE_WEBHOOK_SECRET=simulator.secret
    )
    folder = tmp_path_factory.mktemp("up")
    with running_up(folder, handlers=downstream.handler(), settings=settings) as running:
        yield running


@pytest.fixture
def storage(proxy: FaultyProxy, up: Up, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """What is in the bucket, past the proxy."""
    for name, value in proxy.target.variables().items():
        monkeypatch.setenv(name, value)
    return Storage(proxy.target.url)


def finish(up: Up, simulator: Simulator, identity: str, output: Any, **more: Any) -> None:
    """Let a prediction end, and its webhook be sent."""
    stamps = {"created_at": "2026-01-01T00:00:00Z", "completed_at": None, "error": None, "version": "hidden"}
    ended = {"id": identity, "input": {}, "output": output, "status": "succeeded", **stamps, **more}
    simulator.finish(Kind.PREDICTION, ended, up.hook)


def told(downstream: Recorder, identity: str) -> dict[str, Any]:
    """The event that the handler got."""
    downstream.wait_for(lambda them: identity in them.ids(), f"{identity} is told", seconds=120)
    event: dict[str, Any] = downstream.of(identity)[0].event
    return event


def command(up: Up, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run `outkeep` with the environment of `up`."""
    arguments = [sys.executable, "-m", "app.cli", *words]
    return forked.run(
        arguments, cwd=up.folder, env=up.environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_files_of_every_size_are_kept_and_their_links_lead_to_the_bytes(
    up: Up, simulator: Simulator, downstream: Recorder, proxy: FaultyProxy
) -> None:
    contents = [PNG + os.urandom(1000), PNG + os.urandom(20 << 20)]
    urls = [simulator.add_file(f"out-{number}.png", content) for number, content in enumerate(contents)]
    finish(up, simulator, "files", urls)
    event = told(downstream, "files")

    for file, content in zip(event["data"]["files"], contents, strict=True):
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["url"].startswith(up.url)
        assert PLAIN.get(file["url"]).headers["location"].startswith(proxy.s3.endpoint)
        with urlopen(file["url"], timeout=60) as answer:
            assert answer.read() == content
            assert answer.headers["content-type"] == "image/png"
        with urlopen(Request(file["url"], headers={"Range": "bytes=8-15"}), timeout=60) as answer:
            assert (answer.status, answer.read()) == (206, content[8:16])


def test_a_large_event_passes_through_the_bucket(
    up: Up, simulator: Simulator, downstream: Recorder, storage: Storage
) -> None:
    image = PNG + os.urandom(4 << 20)
    finish(up, simulator, "inside", f"data:image/png;base64,{base64.b64encode(image).decode()}")
    event = told(downstream, "inside")

    assert event["data"]["files"][0]["sha256"] == hashlib.sha256(image).hexdigest()
    assert storage.get("predictions/inside/output-0.png") == image
    until(lambda: not list(storage.names(CLAIMS)), "the body that waited is gone")


def test_credentials_that_are_refused_for_a_while_lose_nothing(
    up: Up, simulator: Simulator, downstream: Recorder, proxy: FaultyProxy, storage: Storage
) -> None:
    refused = []

    def refuse(asked: Any) -> Refusal | None:
        if "predictions/later" in asked.path:
            refused.append(asked)
        return Refusal(403, "ExpiredToken")

    content = PNG + os.urandom(1000)
    url = simulator.add_file("later.png", content)
    proxy.rule = refuse
    finish(up, simulator, "later", url)
    until(lambda: refused, "the worker asked the store")
    ready = PLAIN.get(f"{up.url}/readyz")
    until(
        lambda: "AWS_SESSION_TOKEN" in PLAIN.get(f"{up.url}/readyz").text,
        "readiness names the variable",
    )
    doctor = command(up, "doctor")
    proxy.mend()
    event = told(downstream, "later")

    assert ready.status_code == 200
    assert doctor.returncode == 1
    assert "fail storage: s3://keep/below/here: the credentials have expired" in doctor.stdout
    assert event["data"]["files"][0]["sha256"] == hashlib.sha256(content).hexdigest()
    assert storage.get("predictions/later/output-0.png") == content
    assert '"credentials_expired"' in up.text()


def test_the_commands_work_on_a_bucket(
    up: Up, simulator: Simulator, downstream: Recorder, storage: Storage
) -> None:
    finish(up, simulator, "shown", "some text")
    told(downstream, "shown")
    finish(up, simulator, "unusable", "x", status="")
    until(lambda: list(storage.names("quarantine")), "it is set aside")

    listed = command(up, "ls", "--json")
    assert "shown" in listed.stdout
    shown = json.loads(command(up, "show", "shown", "--json").stdout)
    assert "s3://keep/below/here" in command(up, "show", "shown").stdout
    assert json.dumps(shown).count("output.txt") >= 1
    assert "quarantine/" in command(up, "ls", "--quarantine", "--json").stdout
    replayed = command(up, "replay", "shown")
    assert replayed.returncode == 0, replayed
    until(lambda: len(downstream.of("shown")) == 2, "it is told again")
    assert command(up, "doctor").stdout.count("ok   storage: s3://keep/below/here") == 1
