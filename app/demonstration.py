"""`outkeep demo`: the main job end to end, with a simulated Replicate, the real everything else, and a handler."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import replicate
from redis import Redis

from app.core.errors import OutkeepError, Permanent
from app.core.keys import generate_secret, parse_verifying_keys
from app.core.lifecycle import State
from app.core.manifest import KeptFile
from app.core.names import EVENTS, Kind, object_name, split_member
from app.core.signature import verify
from app.embedded import running_url
from app.records import Record, Records
from app.simulator import Simulator
from app.storage import Storage

PATIENCE = 90.0
"""Seconds after which the demonstration counts as failed."""

HANDLER = "demo"
_TTL = 7 * 86400


@dataclass
class _Told:
    """What the handler has been told; its server thread writes, the main thread waits."""

    secret: str
    ids: set[str] = field(default_factory=set)
    changed: threading.Event = field(default_factory=threading.Event)


def run(data: Path | None, *, stay: bool) -> int:
    """Show it, then stop everything; 0 when all was kept and handed on.

    Raises `Permanent` with what did not happen in time.
    """
    data = data or Path(tempfile.mkdtemp(prefix="outkeep-demo-"))
    data.mkdir(parents=True, exist_ok=True)
    told = _Told(generate_secret(os.urandom(32)))
    with Simulator(pace=1.0) as simulator, _handler(told) as handler_url:
        port = _free_port()
        environment = _environment(simulator, data, port, handler_url, told.secret)
        with _outkeep(environment, data) as process:
            redis = _await_ready(process, data)
            click.secho(f"Outkeep receives on http://127.0.0.1:{port}/webhooks/replicate", bold=True)
            wanted = _create(simulator, port)
            _follow(redis, Storage((data / "outputs").as_uri()), wanted, told)
            _conclude(data, environment, next(iter(wanted)))
            if stay:
                click.echo("\nEverything keeps running; Ctrl-C ends it.")
                _wait_for_interrupt(process)
    return 0


def _create(simulator: Simulator, port: int) -> dict[str, str]:
    """Start predictions as anyone would, through the official client; id → what it is."""
    client = replicate.Client(api_token=simulator.token, base_url=simulator.url)
    hook = f"http://127.0.0.1:{port}/webhooks/replicate"
    orders = {
        "an image": ("outkeep/image", {"prompt": "a lighthouse at dusk"}),
        "four images": ("outkeep/images", {"prompt": "the four seasons", "num_outputs": 4}),
        "a text, token by token": ("outkeep/llama", {"prompt": "a haiku about keeping things"}),
        "an archive and other files": ("outkeep/files", {}),
        "separated sounds": ("outkeep/separate", {}),
    }
    created = {}
    click.echo("\nCreating with the official client:")
    for label, (model, given) in orders.items():
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
    created[training.id] = "a training's weights"
    for identity, label in created.items():
        click.echo(f"  {identity}  {label}")
    return created


def _follow(redis: Redis, storage: Storage, wanted: Mapping[str, str], told: _Told) -> None:
    """Print what happens to each prediction until all have been handed on."""
    records = Records(redis, ttl=_TTL)
    seen: dict[str, set[State]] = {identity: set() for identity in wanted}
    until = time.monotonic() + PATIENCE
    click.echo()
    with redis.pubsub(ignore_subscribe_messages=True) as events:
        events.subscribe(EVENTS)
        places = {(kind, identity) for identity in wanted for kind in Kind}
        while not (all(State.DISPATCHED in states for states in seen.values()) and told.ids >= wanted.keys()):
            if time.monotonic() > until:
                raise Permanent(
                    "demo_failed", f"not everything was handed on within {PATIENCE:.0f} s; see the log"
                )
            for place in places:
                record = records.get(*place)
                if record is not None:
                    _say(record, seen[place[1]], wanted[place[1]], storage)
            message = events.get_message(timeout=0.5)
            places = {split_member(message["data"].decode())} if message else set(places)
            places = {place for place in places if place[1] in wanted}


def _say(record: Record, seen: set[State], label: str, storage: Storage) -> None:
    news = {State.RUNNING: {State.RUNNING}, State.RECEIVED: {State.RECEIVED}}
    for state in news.get(record.state, {State.RECEIVED, State.STORED, record.state}) - seen:
        seen.add(state)
        if state is State.RECEIVED:
            click.echo(f"{click.style('received', fg='blue')}  {record.id}  {record.status}  ({label})")
        elif state is State.STORED:
            manifest = storage.read_manifest(record.kind, record.id)
            for file in manifest.files if manifest else ():
                click.echo(_file_line(record, file))


def _file_line(record: Record, file: KeptFile) -> str:
    if file.sha256 is None:
        return f"{click.style('lost', fg='red')}      {file.pointer}: {file.error}"
    name = object_name(record.kind, record.id, file.name or "")
    return f"{click.style('kept', fg='green')}      {name}  {file.size} bytes  sha256 {file.sha256[:12]}…"


def _conclude(data: Path, environment: Mapping[str, str], example: str) -> None:
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


def _environment(
    simulator: Simulator, data: Path, port: int, handler_url: str, handler_secret: str
) -> dict[str, str]:
    handlers = data / "outkeep.toml"
    handlers.write_text(
        f'[[handler]]\nname = "{HANDLER}"\nurl = "{handler_url}"\nsecret = "env:DEMO_SECRET"\n'
    )
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OUTKEEP_", "REPLICATE_", "REDIS_URL"))
    }
    return own | {
        "DEMO_SECRET": handler_secret,
        "HOST": "127.0.0.1",
        "LOG_FORMAT": "json",
        "OUTKEEP_DATA": str(data),
        "OUTKEEP_DISK_FLOOR": "0",
        "OUTKEEP_HANDLERS": str(handlers),
        "OUTKEEP_NOTIFY_PRIVATE": "true",
        "OUTKEEP_OUTPUT_HOSTS": simulator.url,
        "PORT": str(port),
        "REPLICATE_WEBHOOK_SECRET": simulator.secret,
    }


@contextmanager
def _outkeep(environment: Mapping[str, str], data: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with (data / "outkeep.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "app.cli", "up"], env=dict(environment), stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _await_ready(process: "subprocess.Popen[bytes]", data: Path) -> Redis:
    """Wait until the embedded server and both workers are there."""
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        url = running_url(data)
        if url is not None:
            redis = Redis.from_url(url)
            if all(redis.scard(f"rq:workers:{name}") for name in ("persist", "notify")):
                return redis
        time.sleep(0.1)
    raise Permanent("demo_failed", f"Outkeep did not start; its log is {data / 'outkeep.log'}")


@contextmanager
def _handler(told: _Told) -> Iterator[str]:
    """A downstream on a free port, which verifies what it is sent."""
    keys = parse_verifying_keys(told.secret)

    class Downstream(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
            try:
                verify(headers, body, keys, now=time.time())
            except OutkeepError as error:
                click.echo(f"the handler refuses an event: {error.message}", err=True)
                self.send_response(401)
            else:
                _hear(told, body)
                self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Downstream) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/outputs"
        server.shutdown()


def _hear(told: _Told, body: bytes) -> None:
    import json

    event = json.loads(body)
    files = len(event["data"]["files"])
    told.ids.add(event["data"]["id"])
    style = click.style("told", fg="magenta")
    click.echo(f"{style}      {event['data']['id']}  {event['type']}  {files} files, signature verified")


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port: int = probe.getsockname()[1]
    return port


def _wait_for_interrupt(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait()
    except KeyboardInterrupt:
        click.echo()
