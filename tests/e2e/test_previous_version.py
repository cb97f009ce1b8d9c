"""Data of Outkeep 0.1 under this version, as after an upgrade.

`samples/data-0.1.tar.gz` was left by an `outkeep up` of 0.1 (commit 1a64313), whose processes were killed:
`stored` was told, `waits` has a notification scheduled, `refused` switched its handler off, `received` and
`large` (over 1 MiB) had no worker any more, `runs` is progress, and `spooled` came while Valkey was away.
"""

import json
import sys
import tarfile
from collections.abc import Iterator

import pytest

from tests import forked
from tests.conftest import SAMPLES
from tests.e2e.recorder import Recorder
from tests.e2e.running import Up, running_up

PENDING = ("received", "large", "spooled")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, downstream: Recorder) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("upgraded")
    with tarfile.open(SAMPLES / "data-0.1.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    handlers = "".join(
        downstream.handler(name, extra=f'model = "{model}"')
        for name, model in (("gallery", "*"), ("gone", "a/gone"), ("later", "a/later"))
    )
    with running_up(folder, handlers=handlers) as running:
        yield running


def outkeep(up: Up, *words: str) -> str:
    command = [sys.executable, "-m", "app.cli", *words]
    done = forked.run(
        command, cwd=up.folder, env=up.environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("identity", PENDING)
def test_what_was_acknowledged_and_waited_is_kept_and_told(
    up: Up, downstream: Recorder, identity: str
) -> None:
    downstream.wait_for(lambda them: identity in them.ids(), f"{identity} is told")
    manifest = json.loads((up.outputs / "predictions" / identity / "prediction.json").read_bytes())
    assert [file["error"] for file in manifest["files"]] == [None]
    assert {one.path for one in downstream.of(identity)} == {"/gallery"}


def test_a_notification_that_was_to_be_repeated_is(up: Up, downstream: Recorder) -> None:
    downstream.wait_for(lambda them: "waits" in them.ids(), "the handler is asked again")
    [again] = downstream.of("waits")
    assert again.path == "/later"
    assert again.event["data"]["files"][0]["name"] == "output-0.png"


def test_what_was_told_is_not_told_again_and_what_was_switched_off_stays_off(
    up: Up, downstream: Recorder
) -> None:
    for identity in (*PENDING, "waits"):
        downstream.wait_for(lambda them, one=identity: one in them.ids(), f"{identity} is told")  # type: ignore[misc]
    assert downstream.of("stored") == downstream.of("training") == downstream.of("refused") == []
    [gone] = [line for line in outkeep(up, "handlers").splitlines() if line.startswith("gone ")]
    assert gone.split()[1] == "off"


def test_what_was_stored_is_sound_and_can_be_told_again(up: Up, downstream: Recorder) -> None:
    outkeep(up, "verify", "stored", "waits", "refused")
    outkeep(up, "replay", "stored")
    downstream.wait_for(lambda them: "stored" in them.ids(), "it is told again")
    [told] = downstream.of("stored")
    assert [file["name"] for file in told.event["data"]["files"]] == ["output-0.png", "output-1.png"]
    assert told.event["data"]["query"] == {"order": "17"}


def test_the_doctor_finds_nothing_wrong(up: Up) -> None:
    assert "fail " not in outkeep(up, "doctor")
