"""`outkeep run` beside a real `outkeep up`, against the simulator, with and without a public URL."""

import json
import os
import pty
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from app.core.names import Kind, record_key
from app.simulator import Simulator
from app.simulator import pictures as media
from app.simulator.models import version_id
from tests import forked
from tests.api_host import Hanging, api_host, lost
from tests.e2e.canary import leaks
from tests.e2e.recorder import Recorder
from tests.e2e.running import OUTKEEP, PATIENCE, Up, running_up, until

pytestmark = pytest.mark.slow

PICTURE = media.png("a fridge")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, simulator: Simulator, downstream: Recorder) -> Iterator[Up]:
    settings = {
        "OUTKEEP_KEEP_INPUTS": "true",
        "OUTKEEP_OUTPUT_HOSTS": simulator.url,
        "REPLICATE_API_TOKEN": simulator.token,
        "REPLICATE_BASE_URL": simulator.url,
        "REPLICATE_WEBHOOK_SECRET": simulator.secret,
    }
    folder = tmp_path_factory.mktemp("up")
    with running_up(folder, handlers=downstream.handler(), settings=settings) as running:
        yield running


@pytest.fixture
def public(up: Up) -> dict[str, str]:
    """The settings of someone whom Replicate can reach."""
    return {"OUTKEEP_PUBLIC_URL": up.url}


def run(up: Up, *words: str, settings: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    done = forked.run(
        [OUTKEEP, "run", *words],
        cwd=up.folder,
        env=up.environment | dict(settings or {}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    said = (done.stdout + done.stderr).encode()
    assert leaks([up.environment["REPLICATE_API_TOKEN"]], [("the output", said)]) == []
    assert "Traceback" not in done.stderr
    return done


def document(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The one JSON object of `--json`."""
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def manifest(up: Up, prediction_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder_of(up, prediction_id) / "prediction.json").read_text())
    return found


def folder_of(up: Up, prediction_id: str) -> Path:
    return up.outputs / "predictions" / prediction_id


def told(downstream: Recorder, prediction_id: str) -> dict[str, Any]:
    """The event about a prediction; there is no second one."""
    downstream.wait_for(lambda it: prediction_id in it.ids(), f"{prediction_id} is told")
    [request] = downstream.of(prediction_id)
    data: dict[str, Any] = request.event["data"]
    return data


def test_without_a_public_url_it_is_followed_kept_and_told(
    up: Up, simulator: Simulator, downstream: Recorder
) -> None:
    done = run(up, "black-forest-labs/flux-schnell", "-i", "prompt=a lighthouse", "--context", "order=42")
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    path, size, _, _, digest = line.split()
    content = Path(path).read_bytes()
    assert content == media.png("a lighthouse#0")
    prediction_id = Path(path).parent.name
    file = manifest(up, prediction_id)["files"][0]
    assert (file["size"], file["sha256"]) == (int(size), digest)
    assert "webhook" not in simulator.object(Kind.PREDICTION, prediction_id)
    kept = manifest(up, prediction_id)
    assert (kept["source"], kept["context"], kept["webhook_id"]) == ("run", {"order": "42"}, None)
    assert told(downstream, prediction_id)["context"] == {"order": "42"}
    assert f"{prediction_id} succeeded" in done.stderr.splitlines()


def test_with_a_public_url_the_webhook_brings_it(
    up: Up, simulator: Simulator, downstream: Recorder, public: dict[str, str]
) -> None:
    done = run(up, "outkeep/image", "--context", "order=42", "--json", settings=public)
    assert done.returncode == 0, done.stderr
    found = document(done)
    shown = simulator.object(Kind.PREDICTION, found["id"])
    assert shown["webhook"].startswith(f"{up.hook}?outkeep_context=")
    assert shown["webhook_events_filter"] == ["start", "output", "logs", "completed"]
    kept = manifest(up, found["id"])
    assert (kept["source"], kept["context"], kept["query"]) == ("webhook", {"order": "42"}, {})
    assert told(downstream, found["id"])["context"] == {"order": "42"}


def test_a_webhook_that_never_comes_is_made_up_for(up: Up, downstream: Recorder) -> None:
    nowhere = {"OUTKEEP_PUBLIC_URL": "http://127.0.0.1:9"}
    done = run(up, "outkeep/image", "--json", settings=nowhere)
    assert done.returncode == 0, done.stderr
    found = document(done)
    assert manifest(up, found["id"])["source"] == "run"
    told(downstream, found["id"])


def test_text_is_printed_and_stored_joined_and_whole(up: Up) -> None:
    done = run(up, "outkeep/llama", "-i", "prompt=a river", "-i", "num_outputs=10")
    assert done.returncode == 0, done.stderr
    text, line = done.stdout.splitlines()
    assert text == "A river of light, and no bridge."
    path = Path(line.split()[0])
    assert path.name == "output.txt"
    assert path.read_text() == text
    kept = manifest(up, path.parent.name)
    assert "".join(kept["prediction"]["output"]) == "".join(kept["output"]) == text
    assert len(kept["output"]) == 10


def test_a_file_is_uploaded_and_a_url_passed_on(up: Up, simulator: Simulator) -> None:
    (up.folder / "my_fridge.png").write_bytes(PICTURE)
    url = simulator.add_file("photo.png", PICTURE)
    words = ["-i", "image=@my_fridge.png", "-i", f"photo={url}", "-i", "more[]=@my_fridge.png", "-i", "n=2"]
    done = run(up, f"outkeep/copy:{version_id('outkeep/copy')}", *words, "--json")
    assert done.returncode == 0, done.stderr
    found = document(done)
    given = simulator.object(Kind.PREDICTION, found["id"])["input"]
    assert given["image"].startswith(f"{simulator.url}/v1/files/")
    assert given == {"image": given["image"], "photo": url, "more": [given["image"]], "n": 2}
    names = ["output-0.png", "input-image-0.png", "input-photo-0.png", "input-more-0.png"]
    assert [file["name"] for file in found["files"]] == names
    assert {Path(found["kept_in"], name).read_bytes() for name in names} == {PICTURE}
    assert done.stderr.count("uploading my_fridge.png") == 1


@pytest.mark.parametrize(
    "model", ["outkeep/community", "deployments/outkeep/image", version_id("outkeep/image")]
)
def test_versions_deployments_and_models_without_a_name_of_their_own_run(up: Up, model: str) -> None:
    found = document(run(up, model, "--json"))
    assert (found["status"], found["output"]) == ("succeeded", "output-0.png")


def test_inputs_may_come_as_json(up: Up, simulator: Simulator) -> None:
    (up.folder / "input.json").write_text('{"prompt": "null", "num_outputs": 3}')
    done = run(up, "outkeep/images", "--input-json", "input.json", "-i", "num_outputs=2", "--json")
    found = document(done)
    assert simulator.object(Kind.PREDICTION, found["id"])["input"] == {"prompt": "null", "num_outputs": 2}
    assert found["output"] == ["output-0.png", "output-1.png"]


def test_replicate_cancels_it_at_the_deadline_that_was_asked_for(up: Up, downstream: Recorder) -> None:
    done = run(up, "outkeep/image", "-i", "seconds=60", "--cancel-after", "5s", "--json")
    assert done.returncode == 1
    found = document(done)
    assert found["status"] == "canceled"
    deadline = manifest(up, found["id"])["prediction"]["deadline"]
    assert told(downstream, found["id"])["deadline"] == deadline
    show = [OUTKEEP, "show", found["id"]]
    shown = subprocess.check_output(show, cwd=up.folder, env=up.environment, text=True)
    assert f"  deadline {deadline}" in shown.splitlines()


def test_a_prediction_that_fails_ends_with_1_and_is_kept(up: Up, downstream: Recorder) -> None:
    done = run(up, "outkeep/fails", "--json")
    assert done.returncode == 1
    found = document(done)
    assert (found["status"], found["error"]) == ("failed", "CUDA out of memory")
    assert done.stderr.splitlines()[-1] == f"outkeep: {found['id']} failed: CUDA out of memory"
    assert told(downstream, found["id"])["status"] == "failed"


def test_an_output_that_is_lost_ends_with_1(up: Up, simulator: Simulator, downstream: Recorder) -> None:
    gone = simulator.add_file("gone.png", PICTURE)
    simulator.remove_file(gone)
    with following(up, "outkeep/slow", "--json") as (process, prediction_id):
        shown = simulator.object(Kind.PREDICTION, prediction_id)
        ended = {"status": "succeeded", "output": [gone], "completed_at": shown["created_at"]}
        simulator.finish(Kind.PREDICTION, shown | ended)
        printed, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert [(one["pointer"], one["error"]) for one in json.loads(printed)["lost"]] == [
        ("/output/0", "not_found")
    ]
    assert said.splitlines()[-1] == f"outkeep: 1 outputs of {prediction_id} are lost"
    assert len(told(downstream, prediction_id)["lost"]) == 1


def test_no_wait_prints_the_id_and_leaves_the_rest_to_the_webhook(
    up: Up, downstream: Recorder, public: dict[str, str]
) -> None:
    done = run(up, "outkeep/image", "-i", "seconds=0.5", "--no-wait", settings=public)
    assert done.returncode == 0, done.stderr
    prediction_id = done.stdout.strip()
    assert told(downstream, prediction_id)["status"] == "succeeded"


def test_no_wait_makes_it_known_at_once(up: Up) -> None:
    found = document(run(up, "outkeep/slow", "--no-wait", "--json"))
    assert (found["status"], found["kept_in"]) == ("starting", str(folder_of(up, found["id"])))
    with up.redis() as redis:
        record = redis.hgetall(record_key(Kind.PREDICTION, found["id"]))
    assert (record[b"state"], record[b"source"]) == (b"running", b"run")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["flux-schnell"], "write owner/name"),
        (["a/b", "-i", "prompt"], "is not key=value"),
        (["a/b", "-i", "image=@nowhere.png"], "cannot read nowhere.png: No such file"),
        (["a/b", "-i", "image=@."], "cannot read .: Is a directory"),
        (["a/b", "--context", "outkeep=1"], "a name of ours"),
        (["a/b", "--context", f"x={'y' * 2000}"], "1024 bytes at most"),
        (["a/b", "--input-json", "outkeep.toml"], "it is not JSON"),
    ],
)
def test_what_is_typed_wrong_ends_with_2_before_anything_is_created(
    up: Up, words: list[str], said: str
) -> None:
    done = run(up, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_what_the_api_refuses_ends_with_1(up: Up) -> None:
    absent = run(up, "outkeep/misspelt")
    assert (absent.returncode, absent.stdout) == (1, "")
    assert "outkeep/misspelt does not exist" in absent.stderr
    refused = run(up, "outkeep/image", settings={"REPLICATE_API_TOKEN": "r8_wrong"})
    assert refused.returncode == 1
    assert "REPLICATE_API_TOKEN is refused" in refused.stderr


def test_a_creation_whose_answer_is_lost_is_not_made_again(up: Up, simulator: Simulator) -> None:
    with api_host(simulator) as host:
        host.mishaps.append(lost)
        done = run(up, "outkeep/image", settings={"REPLICATE_BASE_URL": host.url})
    assert (done.returncode, done.stdout, len(host.creations)) == (1, "", 1)
    assert "it may have been created all the same, look at `outkeep ls`" in done.stderr


def test_without_a_token_or_without_outkeep_nothing_is_created(up: Up, tmp_path: Path) -> None:
    done = run(up, "outkeep/image", settings={"REPLICATE_API_TOKEN": ""})
    assert (done.returncode, done.stderr) == (
        2,
        "outkeep: REPLICATE_API_TOKEN: not set, and nothing can be run without it\n",
    )
    nothing = run(up, "outkeep/image", settings={"OUTKEEP_DATA": str(tmp_path)})
    assert nothing.returncode == 2
    assert "start `outkeep up`" in nothing.stderr
    away = run(
        up, "outkeep/image", settings={"REDIS_URL": "redis://127.0.0.1:9", "OUTKEEP_SECRET_KEY": "x" * 32}
    )
    assert away.returncode == 2
    assert "Redis does not answer" in away.stderr


def test_without_a_worker_nothing_is_created(up: Up, valkey_url: str) -> None:
    done = run(
        up, "outkeep/image", settings={"REDIS_URL": f"{valkey_url}?db=9", "OUTKEEP_SECRET_KEY": "x" * 32}
    )
    assert done.returncode == 2
    assert "no worker keeps outputs here" in done.stderr


@contextmanager
def following(up: Up, *words: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run `outkeep run` without a terminal until it says that the model works; the process, and the id."""
    with forked.Popen(
        [OUTKEEP, "run", *words],
        cwd=up.folder,
        env=up.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            prediction_id = process.stderr.readline().split()[-1]
            while line := process.stderr.readline():
                if "processing" in line:
                    break
            yield process, prediction_id
        finally:
            process.kill()


class Seat:
    """Someone at a terminal: what is shown there, and what is typed."""

    def __init__(self, process: "subprocess.Popen[bytes]", screen: int) -> None:
        self.process = process
        self.shown = b""
        self._screen = screen

    def read(self) -> bytes:
        """All that the terminal has shown, a moment later."""
        if select.select([self._screen], [], [], 0.05)[0]:
            with suppress(OSError):  # the other side is closed
                self.shown += os.read(self._screen, 65536)
        return self.shown

    def wait_for(self, text: bytes) -> None:
        until(lambda: text in self.read(), f"{text!r} is shown")

    def type(self, keys: bytes) -> None:
        os.write(self._screen, keys)

    def end(self) -> int:
        """The exit code, once it ends."""
        until(lambda: (self.read(), self.process.poll())[1] is not None, "the command ends")
        before = None
        while before != self.shown:
            before, _ = self.shown, self.read()
        code: int = self.process.returncode
        return code


@contextmanager
def seated(up: Up, *words: str) -> Iterator[Seat]:
    """Run `outkeep run` at a terminal of its own."""
    screen, line = pty.openpty()
    process = forked.Popen(
        [OUTKEEP, "run", *words],
        cwd=up.folder,
        env=up.environment | {"TERM": "xterm"},
        stdin=line,
        stdout=line,
        stderr=line,
        start_new_session=True,
    )
    os.close(line)
    try:
        yield Seat(process, screen)
    finally:
        process.kill()
        process.wait()
        os.close(screen)


def test_a_terminal_shows_a_bar_and_then_the_files(up: Up) -> None:
    with seated(up, "outkeep/image", "-i", "seconds=6") as seat:
        seat.wait_for(b"#")
        assert seat.end() == 0
    assert b"output-0.png" in seat.shown.splitlines()[-1]
    assert b"\x1b[K" in seat.shown


def test_a_terminal_shows_text_as_it_grows(up: Up) -> None:
    with seated(up, "outkeep/llama", "-i", "seconds=600", "-i", "num_outputs=250") as seat:
        seat.wait_for(b"A river")
        assert b"bridge" not in seat.shown
        os.kill(seat.process.pid, signal.SIGINT)
        seat.wait_for(b"Cancel the prediction? [y/N]")
        seat.type(b"y\n")
        assert seat.end() == 1
    assert seat.shown.count(b"A river") == 1
    assert b"output.txt" in seat.shown


def interrupted(seat: Seat) -> str:
    """Press Ctrl-C once it runs; the id."""
    seat.wait_for(b"processing")
    os.kill(seat.process.pid, signal.SIGINT)
    seat.wait_for(b"Cancel the prediction? [y/N]")
    return seat.shown.split(b"prediction ")[1].split()[0].decode()


def test_ctrl_c_cancels_if_that_is_wanted(up: Up, simulator: Simulator, downstream: Recorder) -> None:
    with seated(up, "outkeep/slow") as seat:
        prediction_id = interrupted(seat)
        seat.type(b"y\n")
        assert seat.end() == 1
    assert f"{prediction_id} canceled".encode() in seat.shown
    assert simulator.object(Kind.PREDICTION, prediction_id)["status"] == "canceled"
    assert told(downstream, prediction_id)["status"] == "canceled"


def test_ctrl_c_leaves_it_running_otherwise(up: Up, simulator: Simulator) -> None:
    with seated(up, "outkeep/slow") as seat:
        prediction_id = interrupted(seat)
        seat.type(b"\n")
        assert seat.end() == 1
    assert f"outkeep show {prediction_id}".encode() in seat.shown
    assert simulator.object(Kind.PREDICTION, prediction_id)["status"] == "processing"


def test_ctrl_c_while_the_outputs_are_kept_cancels_nothing(up: Up) -> None:
    worker = up.pids()["worker"]
    os.kill(worker, signal.SIGSTOP)
    try:
        with seated(up, "outkeep/image") as seat:
            seat.wait_for(b"succeeded")
            prediction_id = seat.shown.split(b"prediction ")[1].split()[0].decode()
            until(lambda: states(up).get(prediction_id) == "received", "it is handed in")
            os.kill(seat.process.pid, signal.SIGINT)
            assert seat.end() == 1
    finally:
        os.kill(worker, signal.SIGCONT)
    assert f"{prediction_id} has ended, and Outkeep keeps what it made".encode() in seat.shown
    assert b"Cancel" not in seat.shown
    until((folder_of(up, prediction_id) / "prediction.json").exists, "it is kept")


def states(up: Up) -> dict[str, str]:
    """Those of all that is known, by id."""
    done = forked.run(
        [OUTKEEP, "ls", "--json"], cwd=up.folder, env=up.environment, capture_output=True, check=True
    )
    return {line["id"]: line["state"] for line in map(json.loads, done.stdout.splitlines())}


def test_an_interrupt_without_a_terminal_leaves_it_running(up: Up, simulator: Simulator) -> None:
    with following(up, "outkeep/slow") as (process, prediction_id):
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert said.splitlines()[-1] == f"outkeep: {prediction_id} goes on; see `outkeep show {prediction_id}`"
    assert simulator.object(Kind.PREDICTION, prediction_id)["status"] == "processing"


def test_an_interrupt_while_it_is_created_waits_until_it_is_known(up: Up, simulator: Simulator) -> None:
    """It is paid for, so that nobody may forget it."""
    creation = Hanging()
    with api_host(simulator) as host:
        host.mishaps.append(creation)
        with forked.Popen(
            [OUTKEEP, "run", "outkeep/slow"],
            cwd=up.folder,
            env=up.environment | {"REPLICATE_BASE_URL": host.url},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert creation.created.wait(PATIENCE)
            process.send_signal(signal.SIGINT)
            creation.release.set()
            _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    answer, created, *_, end = said.splitlines()
    assert answer == "waiting until it is known whether the prediction was created"
    prediction_id = created.removeprefix("prediction ")
    assert end == f"outkeep: {prediction_id} goes on; see `outkeep show {prediction_id}`"
    with up.redis() as redis:
        assert redis.hget(record_key(Kind.PREDICTION, prediction_id), "source") == b"run"
