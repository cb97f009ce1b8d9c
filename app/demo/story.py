"""`outkeep demo`: the main job end to end, told step by step. Only Replicate is simulated."""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from redis import Redis
from replicate.client import Client

from app.core.errors import Permanent
from app.core.keys import generate_secret
from app.core.lifecycle import State
from app.core.manifest import KeptFile
from app.core.names import EVENTS, Kind, object_name, split_member
from app.demo import stage
from app.demo.downstream import downstream
from app.records import Record, Records
from app.simulator import Simulator
from app.storage import Storage

_TTL = 7 * 86400
_ORDER = [State.RUNNING, State.RECEIVED, State.STORED, State.DISPATCHED]


@dataclass
class _Told:
    """What the handler has been told: its server's threads write, the main thread looks."""

    ids: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def hear(self, event: dict[str, Any]) -> None:
        data = event["data"]
        style = click.style("told", fg="magenta")
        with self.lock:
            self.ids.add(data["id"])
            click.echo(f"{style}      {data['id']}  {event['type']}  {len(data['files'])} files, verified")


_ORDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "an image": ("outkeep/image", {"prompt": "a lighthouse at dusk"}),
    "four images": ("outkeep/images", {"prompt": "the four seasons", "num_outputs": 4}),
    "a text, token by token": ("outkeep/llama", {"prompt": "a haiku about keeping things"}),
    "an object of files": ("outkeep/files", {}),
    "separated sounds": ("outkeep/separate", {}),
}
"""What is created: a label → the simulated model and its input."""


def run(data: Path | None, *, stay: bool) -> int:
    """Show it, then stop everything; 0 when all was kept and handed on.

    Raises `Permanent` with what did not happen in time.
    """
    data = data or Path(tempfile.mkdtemp(prefix="outkeep-demo-"))
    data.mkdir(parents=True, exist_ok=True)
    told, secret = _Told(), generate_secret(os.urandom(32))
    with Simulator(pace=1.0) as simulator, downstream(secret, told.hear) as handler_url:
        port = stage.free_port()
        settings = stage.environment(simulator, data, port, (handler_url, secret))
        with stage.running(settings, data) as process:
            redis = stage.await_workers(process, data)
            click.secho(f"Outkeep receives on http://127.0.0.1:{port}/webhooks/replicate", bold=True)
            wanted = _create(simulator, f"http://127.0.0.1:{port}/webhooks/replicate")
            _follow(redis, Storage((data / "outputs").absolute().as_uri()), wanted, told)
            _conclude(data, next(iter(wanted)))
            if stay:
                click.echo("\nEverything keeps running; Ctrl-C ends it.")
                _wait_for_interrupt(process)
    return 0


def _create(simulator: Simulator, hook: str) -> dict[str, str]:
    """Start predictions as anyone would, through the official client; id → what it is."""
    client = Client(api_token=simulator.token, base_url=simulator.url)
    created = {}
    click.echo("\nCreating with the official client:")
    for label, (model, given) in _ORDERS.items():
        prediction = client.models.predictions.create(
            model, given, webhook=hook, webhook_events_filter=["start", "output", "completed"]
        )
        created[prediction.id] = label
    training = client.trainings.create(
        model="outkeep/train",
        version="0" * 64,
        input={"input_images": f"{simulator.url}/none.zip"},
        destination="you/your-model",
        webhook=f"{hook}/trainings",
    )
    created[training.id] = "the weights of a training"
    for identity, label in created.items():
        click.echo(f"  {identity}  {label}")
    return created


def _follow(redis: Redis, storage: Storage, wanted: Mapping[str, str], told: _Told) -> None:
    """Print what happens to each prediction until all have been handed on."""
    records = Records(redis, ttl=_TTL)
    said: dict[str, set[State]] = {identity: set() for identity in wanted}
    changes = redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    changes.subscribe(EVENTS)
    until = time.monotonic() + stage.PATIENCE
    places = {(kind, identity) for identity in wanted for kind in Kind}
    while not told.ids >= wanted.keys() or not all(State.DISPATCHED in states for states in said.values()):
        if time.monotonic() > until:
            raise Permanent("demo_failed", "not everything was handed on in time")
        for kind, identity in places:
            record = records.get(kind, identity)
            if record is not None:
                _say(record, said[identity], wanted[identity], storage)
        message = changes.get_message(timeout=0.5)
        changed = split_member(message["data"].decode()) if message else None
        places = {changed} if changed and changed[1] in wanted else set()
    changes.close()


def _say(record: Record, said: set[State], label: str, storage: Storage) -> None:
    """Print what is new of a prediction; a fast one may have passed several states since the last look."""
    passed = _ORDER[: _ORDER.index(record.state) + 1]
    for state in [state for state in passed if state not in said]:
        said.add(state)
        if state is State.RECEIVED:
            style = click.style("received", fg="blue")
            click.echo(f"{style}  {record.id}  {record.status}  ({label})")
        elif state is State.STORED:
            manifest = storage.read_manifest(record.kind, record.id)
            for file in manifest.files if manifest else ():
                click.echo(_file_line(record, file))


def _file_line(record: Record, file: KeptFile) -> str:
    if file.sha256 is None:
        return f"{click.style('lost', fg='red')}      {file.pointer}: {file.error}"
    name = object_name(record.kind, record.id, file.name or "")
    return f"{click.style('kept', fg='green')}      {name}  {file.size} bytes  sha256 {file.sha256[:12]}…"


def _conclude(data: Path, example: str) -> None:
    outputs = data / "outputs"
    files = sorted(path for path in outputs.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    click.secho(f"\nAll kept and handed on: {len(files)} files, {size} bytes in {outputs}", bold=True)
    click.echo(f"""
Look at it:
  find {outputs} -type f
  cat {outputs}/predictions/{example}/prediction.json
  OUTKEEP_DATA={data} outkeep show {example}
Try next:
  outkeep demo --stay      the same, kept running
  outkeep up               with REPLICATE_WEBHOOK_SECRET from your Replicate account""")


def _wait_for_interrupt(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait()
    except KeyboardInterrupt:
        click.echo()
