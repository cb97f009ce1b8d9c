"""`outkeep demo`: the main job end to end, told step by step. Only Replicate is simulated."""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from redis.exceptions import RedisError
from replicate.client import Client

from app.accept.records import Record, Records
from app.core.errors import ConfigurationError
from app.core.lifecycle import State
from app.core.manifest import KeptFile
from app.core.names import Kind
from app.core.signature import generate_secret
from app.demo import stage, words
from app.demo.stage import downstream
from app.deployment import own_keys
from app.receive.listening import free_port
from app.simulator import Simulator
from app.storage.store import Storage
from app.web.signing import sign_in_url

_TTL = 7 * 86400
_STOPPED = "Outkeep stopped before all was handed on"
_STEPS = (State.RECEIVED, State.STORED, State.DISPATCHED)
"""What is shown of a prediction, in this order; a fast one may pass several between two looks."""

_ORDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "an image": ("outkeep/image", {"prompt": "mountains at dusk", "seed": 4}),
    "four images": ("outkeep/images", {"prompt": "a winter night, a forest in spring", "num_outputs": 4}),
    "a text, word by word": ("outkeep/llama", {"prompt": "a haiku about keeping things"}),
    "files in an object": ("outkeep/files", {"prompt": "the sea in summer"}),
    "an animation": ("outkeep/animation", {"prompt": "a river that flows for ever"}),
    "music": ("outkeep/music", {"prompt": "a slow evening"}),
    "a video": ("outkeep/video", {"prompt": "a ball before mountains at sunset"}),
    "two sounds": ("outkeep/separate", {"prompt": "a duet"}),
}
"""What is created: a label → the simulated model and its input."""


class _Heard:
    """The events that the handler got: its server's threads write, the main thread looks."""

    def __init__(self) -> None:
        self._events: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def hear(self, event: dict[str, Any]) -> None:
        with self._lock:
            self._events.setdefault(event["data"]["id"], event)

    def about(self, identity: str) -> dict[str, Any] | None:
        with self._lock:
            return self._events.get(identity)


@dataclass
class _Followed:
    """A prediction on its way, and what was said of it."""

    kind: Kind
    id: str
    label: str
    said: set[State] = field(default_factory=set)
    files: tuple[KeptFile, ...] = ()
    told: bool = False


def run(data: Path | None, *, stay: bool) -> int:
    """Show it, then stop everything; 0 when all was kept and handed on.

    Raises `Permanent` that says what went wrong and names the log, or `ConfigurationError` for a folder
    `data` that is not empty or cannot be made.
    """
    data = _own_folder(data) if data else Path(tempfile.mkdtemp(prefix="outkeep-demo-"))
    heard, secret = _Heard(), generate_secret(os.urandom(32))
    click.echo("Outkeep, from a webhook to your next step. Replicate is simulated here, all else is real.")
    with Simulator(pace=1.0) as simulator, downstream(secret, heard.hear) as handler_url:
        url = f"http://127.0.0.1:{(port := free_port())}"
        settings = stage.environment(simulator, data, port, (handler_url, secret))
        words.title("1. Outkeep starts: receiver, workers, a durable queue, storage")
        with stage.running(settings, data) as process:
            try:
                example = _perform(simulator, url, data, process, heard)
            except RedisError:
                raise stage.failure(_STOPPED, data) from None
            if stay:
                link = sign_in_url(url, own_keys(data), now=time.time())
                _stay(process, data, lambda: words.try_meanwhile(data, example, url, link))
            else:
                words.try_next(data, example)
    return 0


def _own_folder(data: Path) -> Path:
    """An empty folder: what lies in another one may be somebody's work, and be in use."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        empty = not any(data.iterdir())
    except OSError as error:
        raise ConfigurationError([f"--data: cannot use {data}: {error.strerror}"]) from None
    if not empty:
        raise ConfigurationError([f"--data: {data} is not empty; name a new folder for the demonstration"])
    return data.absolute()


def _perform(
    simulator: Simulator, url: str, data: Path, process: "subprocess.Popen[bytes]", heard: _Heard
) -> str:
    """All of the show; the id of one prediction."""
    redis = stage.await_workers(process, data)
    click.echo(f"   it receives on {url}/webhooks/replicate")
    words.title("2. You ask Replicate for predictions, with that address as their webhook")
    followed = _create(simulator, f"{url}/webhooks/replicate")
    words.title("3. They finish: each event is received, its files are kept, your handler is told")
    storage = Storage((data / "outputs").as_uri())
    _follow(Records(redis, ttl=_TTL), storage, followed, heard, (process, data))
    redis.close()
    files = [file for one in followed for file in one.files]
    if any(file.error for file in files):
        raise stage.failure("an output could not be kept", data)
    words.summary(len(followed), len(files), sum(file.size or 0 for file in files))
    words.places(data, data / "outputs" / followed[0].kind.folder / followed[0].id)
    return followed[0].id


def _create(simulator: Simulator, hook: str) -> list[_Followed]:
    """Start predictions and a training as anyone would, through the official client."""
    # Nothing leaves this machine, so a proxy of the environment must not be asked.
    client = Client(api_token=simulator.token, base_url=simulator.url, trust_env=False)
    followed = []
    for label, (model, given) in _ORDERS.items():
        prediction = client.models.predictions.create(
            model, given, webhook=hook, webhook_events_filter=["start", "output", "completed"]
        )
        followed.append(_Followed(Kind.PREDICTION, prediction.id, label))
    training = client.trainings.create(
        model="outkeep/train",
        version="0" * 64,
        input={"input_images": f"{simulator.url}/none.zip"},
        destination="you/your-model",
        webhook=f"{hook}/trainings",
    )
    followed.append(_Followed(Kind.TRAINING, training.id, "trained weights"))
    for one in followed:
        words.created(one.label, one.kind, one.id)
    return followed


def _follow(
    records: Records,
    storage: Storage,
    followed: Sequence[_Followed],
    heard: _Heard,
    running: tuple["subprocess.Popen[bytes]", Path],
) -> None:
    """Print what happens to each prediction until all have been handed on."""
    process, data = running
    until = time.monotonic() + stage.PATIENCE
    while left := [one for one in followed if not one.told]:
        if process.poll() is not None:
            raise stage.failure(_STOPPED, data)
        if time.monotonic() > until:
            missing = ", ".join(one.label for one in left)
            raise stage.failure(f"not handed on within {stage.PATIENCE:.0f} s: {missing}", data)
        for one in left:
            record = records.get(one.kind, one.id)
            if record is not None:
                _say(one, record, storage)
            event = heard.about(one.id)
            if event is not None and State.DISPATCHED in one.said:
                one.told = True
                words.told(one.label, event)
        time.sleep(stage.POLL)


def _say(one: _Followed, record: Record, storage: Storage) -> None:
    """Print what is new of a prediction."""
    passed = _STEPS[: _STEPS.index(record.state) + 1] if record.state in _STEPS else ()
    for state in [state for state in passed if state not in one.said]:
        one.said.add(state)
        if state is State.RECEIVED:
            words.received(one.label, record.status)
        elif state is State.STORED:
            manifest = storage.read_manifest(one.kind, one.id)
            one.files = manifest.files if manifest else ()
            for file in one.files:
                words.kept(one.label, file)


def _stay(process: "subprocess.Popen[bytes]", data: Path, say: Callable[[], None]) -> None:
    """Wait for Ctrl-C, which may come while it is still being said that it ends this."""
    try:
        say()
        process.wait()
    except KeyboardInterrupt:
        click.echo()
    else:
        raise stage.failure("Outkeep stopped by itself", data)
