"""Known secrets are given to a whole run, with failures of every kind, and must come out nowhere."""

import json
import signal
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from redis import Redis

from app.core.signature import generate_secret, parse_signing_keys, signed_headers
from tests import forked
from tests.e2e.canary import files, leaks, redis_contents
from tests.e2e.recorder import Received, Recorder, recorder
from tests.e2e.running import OUTKEEP, Up, running_up, until
from tests.own_valkey import OwnValkey, own_valkey
from tests.serving import PLAIN, Answering, serving

pytestmark = pytest.mark.slow

WEBHOOK_SECRET = generate_secret(b"canary-of-the-webhook-secret!")
HANDLER_SECRET = generate_secret(b"canary-of-the-handler-secret!")
API_TOKEN = "r8_CanaryOfTheApiToken0123456789abcdef"
ADMIN_TOKEN = 'canary of "the" admin-token'
SECRET_KEY = "canary-of-the-secret-key-0123456789abcdef"
COG_TOKEN = "canary-of-the-cog-token"
PASSWORD = "canary/of@the:redis-password"
SECRETS = [WEBHOOK_SECRET, HANDLER_SECRET, API_TOKEN, ADMIN_TOKEN, SECRET_KEY, COG_TOKEN, PASSWORD]


@dataclass
class Host:
    """A file host that keeps the headers of every request, and fails on wish."""

    url: str = ""
    heads: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def host() -> Iterator[Host]:
    running = Host()

    class Handler(Answering):
        def do_GET(self) -> None:
            running.heads.append({name.lower(): value for name, value in self.headers.items()})
            status = int(self.path.split("/")[1])
            self.answer(status, b"png", **({"location": "/200/moved.png"} if status == 302 else {}))

    with serving(Handler) as running.url:
        yield running


@dataclass
class Run:
    """A running `up`, and all that it has said to anyone."""

    up: Up
    files: Host
    said: list[tuple[str, bytes]] = field(default_factory=list)

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> int:
        answer = PLAIN.request(method, f"{self.up.url}{path}", headers=headers, content=body)
        self.said.append((f"answer to {method} {path}", repr(answer.headers).encode() + answer.content))
        return answer.status_code

    def deliver(self, identity: str, **changes: Any) -> int:
        now = time.time()
        made = {
            "id": identity, "status": "succeeded", "input": {}, "error": None, "version": "hidden",
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)), **changes,
        }  # fmt: skip
        return self.send(json.dumps(made).encode())

    def send(self, body: bytes, secret: str = WEBHOOK_SECRET) -> int:
        headers = signed_headers("msg_canary", int(time.time()), body, parse_signing_keys(secret))
        headers |= {"authorization": f"Bearer {COG_TOKEN}", "cookie": f"session={ADMIN_TOKEN!r}"}
        return self.ask("POST", "/webhooks/replicate?customId=1", headers, body)

    def command(self, *arguments: str, **changes: str) -> int:
        """Run `outkeep` in the same environment but for `changes`."""
        ended = forked.run(
            [OUTKEEP, *arguments],
            cwd=self.up.folder,
            env={**self.up.environment, **changes},
            capture_output=True,
            timeout=60,
            check=False,
        )
        self.said.append((f"outkeep {arguments} {sorted(changes)}", ended.stdout + ended.stderr))
        return ended.returncode


@pytest.fixture(scope="module")
def valkey() -> Iterator[OwnValkey]:
    with own_valkey() as server:
        server.start("--requirepass", PASSWORD)
        yield server


PATHS = {"/recorder", "/failing"}


def answer(request: Received) -> int:
    return 500 if request.path == "/failing" else 204


@pytest.fixture(scope="module")
def downstream() -> Iterator[Recorder]:
    with recorder(secret=HANDLER_SECRET, answer=answer) as running:
        yield running


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, valkey: OwnValkey, downstream: Recorder) -> Iterator[Run]:
    settings = {
        "CANARY": HANDLER_SECRET,
        "LOG_LEVEL": "debug",
        "OUTKEEP_ADMIN_TOKEN": ADMIN_TOKEN,
        "OUTKEEP_COG_TOKEN": COG_TOKEN,
        "OUTKEEP_SECRET_KEY": SECRET_KEY,
        "REDIS_URL": valkey.url.replace("unix://", f"unix://:{quote(PASSWORD, safe='')}@"),
        "REPLICATE_API_TOKEN": API_TOKEN,
        "REPLICATE_BASE_URL": "http://127.0.0.1:9",
        "REPLICATE_WEBHOOK_SECRET": WEBHOOK_SECRET,
    }
    handlers = downstream.handler("recorder") + downstream.handler("failing")
    handlers = handlers.replace(HANDLER_SECRET, "env:CANARY")
    with host() as file_host:
        settings["OUTKEEP_OUTPUT_HOSTS"] = file_host.url
        folder = tmp_path_factory.mktemp("up")
        with running_up(folder, handlers=handlers, settings=settings) as up:
            yield Run(up, file_host)


def traffic(run: Run) -> None:
    """Deliveries of every outcome."""
    at = run.files.url
    assert run.deliver("kept", output=[f"{at}/200/a.png", f"{at}/302/b.png", "data:text/plain,abc"]) == 202
    assert run.deliver("lost", output=[f"{at}/404/a.png", f"{at}/410/b.png"]) == 202
    assert run.deliver("later", output=[f"{at}/500/a.png", "http://169.254.169.254/x"]) == 202
    assert run.deliver("running", status="processing") == 202
    assert run.send(b"this is no JSON, but it is signed") == 202
    assert run.send(b"{}", secret=HANDLER_SECRET) == 401
    assert run.ask("POST", "/webhooks/replicate", {"webhook-id": "a"}, b"{}") == 400
    cog = {"authorization": f"Bearer {COG_TOKEN}"}
    assert run.ask("POST", "/webhooks/cog", cog, b'{"id": "hosted", "status": "failed"}') == 202
    assert run.ask("POST", "/webhooks/cog", cog, b'{"status": "failed", "error": "no id"}') == 202
    assert run.ask("POST", "/webhooks/cog", {"authorization": f"Bearer {COG_TOKEN}x"}, b"{}") == 401


def pages(run: Run, link: str) -> None:
    """Every route, with right and wrong credentials."""
    path = link.removeprefix(run.up.url)
    admin = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    shown = (
        "/",
        "/predictions",
        "/predictions/kept",
        "/failures",
        "/handlers",
        "/checks",
        "/stats",
        "/sign-in",
    )
    api = [f"/api/v1/{name}" for name in ("predictions", "predictions/kept", "handlers", "checks", "stats")]
    own = ("/healthz", "/readyz", "/metrics", "/thumbs/predictions/kept/output-0.png")
    for route in (*own, *shown, *api, path.partition("?")[0], f"{path}x", path):
        run.ask("GET", route)
        run.ask("GET", route, admin)
        run.ask("GET", route, {"authorization": f"Bearer {SECRET_KEY}"})


def outage(run: Run, valkey: OwnValkey) -> None:
    """Redis hangs, dies, and comes back."""
    valkey.signal(signal.SIGSTOP)
    run.deliver("meanwhile", output="text")
    pages(run, f"{run.up.url}/files/predictions/kept/output-0.png?expires=1&signature=abc")
    valkey.kill()
    until(lambda: "ConnectionError" in run.up.text(), "the loss of Redis is told")
    run.ask("GET", "/readyz")
    valkey.start("--requirepass", PASSWORD)


def mistakes(run: Run) -> None:
    """Commands that work, and every secret misspelt in every way that is refused."""
    for arguments in (
        ("config",),
        ("config", "--json"),
        ("ls",),
        ("show", "kept", "--json"),
        ("ls", "--lost"),
    ):
        run.command(*arguments)
    bad = {
        "CANARY": f"{HANDLER_SECRET}!",
        "OUTKEEP_SECRET_KEY": SECRET_KEY[:30],
        "OUTKEEP_PROXY": f"http://user:{COG_TOKEN}@[proxy:8080",
        "REDIS_URL": f"redis://:{COG_TOKEN}@127.0.0.1:port/0",
        "REPLICATE_WEBHOOK_SECRET": f"{WEBHOOK_SECRET}!",
    }
    for command in (("up",), ("serve",), ("work", "persist"), ("config",)):
        run.command(*command, PORT="x", **bad)
    run.command("ls", REDIS_URL=run.up.environment["REDIS_URL"].replace("canary", "canary-of-another"))


def tries(downstream: Recorder) -> int:
    """How often the handler that fails was told; it is tried again after five seconds."""
    return sum(one.path == "/failing" for one in downstream.of("one"))


def metric(run: Run, name: str) -> float:
    """One sample of `/metrics`; 0 when it is not there."""
    lines = PLAIN.get(f"{run.up.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name)


def test_log_and_metrics_tell_what_became_of_a_prediction(run: Run, downstream: Recorder) -> None:
    assert "valkey" not in run.up.pids(), "a Redis of one's own is used"
    assert not (run.up.data / "valkey").exists()
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    files = [f"{run.files.url}/200/a.png", f"{run.files.url}/404/b.png"]
    run.deliver("one", output=files, completed_at=ended)
    run.deliver("one", output=[])
    downstream.wait_for(lambda them: {one.path for one in them.of("one")} == PATHS, "both handlers are told")
    for name in (
        'outkeep_deliveries_total{outcome="accepted"}',
        'outkeep_deliveries_total{outcome="duplicate"}',
        'outkeep_predictions_stored_total{kind="prediction"}',
        "outkeep_files_stored_total",
        'outkeep_files_lost_total{code="not_found"}',
        'outkeep_notifications_total{handler="recorder",outcome="delivered"}',
        'outkeep_hour_left_seconds_bucket{le="+Inf"}',
        'outkeep_webhook_delay_seconds_bucket{le="+Inf"}',
        'outkeep_completed_to_stored_seconds_bucket{le="+Inf"}',
        'outkeep_stored_to_notified_seconds_bucket{le="+Inf"}',
        'outkeep_queue_jobs{queue="notify",state="scheduled"}',
        'outkeep_workers{queue="persist"}',
    ):
        until(lambda name=name: metric(run, name) == 1, f"{name} is 1")  # type: ignore[misc]
    for name in (
        'outkeep_notifications_total{handler="failing",outcome="retried"}',
        'outkeep_retries_total{code="status_500",work="notify"}',
    ):
        until(lambda name=name: metric(run, name) == tries(downstream), f"{name} counts each try")  # type: ignore[misc]
    assert metric(run, "outkeep_bytes_stored_total") == 3
    lines = [json.loads(line) for line in run.up.text().splitlines() if line.startswith("{")]
    assert "unlisted" not in {line["event"] for line in lines}
    named = {line["event"]: line for line in lines if line.get("handler") != "failing"}
    received, stored, told = (
        named[name] for name in ("delivery_received", "prediction_stored", "handler_told")
    )
    assert (received["id"], received["delivery"]) == ("one", "msg_canary")
    assert (stored["id"], stored["job"]) == ("one", "persist-prediction-one")
    assert (told["id"], told["job"]) == ("one", "notify-recorder-prediction-one")


def test_no_secret_comes_out_anywhere(run: Run, valkey: OwnValkey, downstream: Recorder) -> None:
    traffic(run)
    downstream.wait_for(lambda them: {"kept", "lost"} <= them.ids(), "both predictions are told")
    (link, *_) = [file["url"] for request in downstream.of("kept") for file in request.event["data"]["files"]]
    signature = link.partition("signature=")[2]
    # The API token goes to no file host and no handler, nor does anything else that we know.
    asked = [(str(number), repr(head).encode()) for number, head in enumerate(run.files.heads)]
    told = [(one.path, repr(one.headers).encode() + one.body) for one in downstream.received]
    assert len(asked) >= 6
    assert leaks(SECRETS, [*asked, *told]) == []
    for head in run.files.heads:
        assert not {"authorization", "cookie", "referer", "proxy-authorization"} & head.keys()
    pages(run, link)
    outage(run, valkey)
    downstream.wait_for(lambda them: "meanwhile" in them.ids(), "what waited in the spool is told")
    mistakes(run)
    contents = list(redis_contents(run.up.redis()))
    assert len(contents) > 10
    assert run.up.stop() == 0

    secrets = [*SECRETS, signature]
    assert leaks(secrets, contents) == []
    assert leaks(secrets, files(run.up.folder)) == []
    assert leaks(secrets, run.said) == []


def test_the_search_finds_a_secret_in_every_place(redis: Redis, tmp_path: Path) -> None:
    redis.hset("a", mapping={"b": f"x{PASSWORD}x"})
    redis.rpush("c", zlib.compress(PASSWORD.encode()))
    (tmp_path / "log").write_text(json.dumps({"said": ADMIN_TOKEN}))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / API_TOKEN).touch()
    assert len(leaks(SECRETS, redis_contents(redis))) == 2
    assert len(leaks(SECRETS, files(tmp_path))) == 2
