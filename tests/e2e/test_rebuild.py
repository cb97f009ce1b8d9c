"""What outlives Redis, on a real `outkeep up`: rebuilt lists, replays a month later, and what was removed."""

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from app.core.manifest import format_time
from app.core.names import NOTIFY_QUEUE, PERSIST_QUEUE
from app.simulator import Simulator
from tests import forked
from tests.e2e.recorder import DEFAULT_SECRET, Received, Recorder, recorder
from tests.e2e.running import Up, running_up, unfinished, until
from tests.receive.web import prediction, signed
from tests.serving import PLAIN

IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20
ENDED = {"dispatched", "failed"}


class Downstream:
    """Two handlers: `recorder` takes everything; `gone` answers 410 while `is_gone`."""

    def __init__(self) -> None:
        self.is_gone = True

    def __call__(self, request: Received) -> int:
        return 410 if request.path == "/gone" and self.is_gone else 204


@pytest.fixture(scope="module")
def answer() -> Downstream:
    return Downstream()


@pytest.fixture(scope="module")
def downstream(answer: Downstream) -> Iterator[Recorder]:
    with recorder(answer=answer) as running:
        yield running


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, simulator: Simulator, downstream: Recorder) -> Iterator[Up]:
    settings = {"REPLICATE_WEBHOOK_SECRET": DEFAULT_SECRET, "OUTKEEP_OUTPUT_HOSTS": simulator.url}
    handlers = downstream.handler() + downstream.handler("gone", extra='on = ["failed"]')
    with running_up(tmp_path_factory.mktemp("up"), handlers=handlers, settings=settings) as running:
        yield running


def outkeep(up: Up, *arguments: str) -> str:
    """What a command prints that ends with 0."""
    command = [sys.executable, "-m", "app.cli", *arguments]
    done = forked.run(command, cwd=up.folder, env=up.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def deliver(up: Up, body: bytes, path: str = "/webhooks/replicate?order=17") -> str:
    answer = PLAIN.post(f"{up.url}{path}", content=body, headers=signed(body))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["outcome"])


def told(up: Up, prediction_id: str, handler: str = "recorder", kind: str = "predictions") -> dict[str, Any]:
    """The outcome file once it is there."""
    path = up.outputs / kind / prediction_id / f"told-{handler}.json"
    until(path.exists, f"{path} is written")
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def works(up: Up) -> bool:
    """Whether any job waits or runs."""
    with up.redis() as redis:
        return bool(unfinished(redis, PERSIST_QUEUE, NOTIFY_QUEUE))


def empty_redis(up: Up) -> None:
    """Let Redis forget all, once nobody is about to write down how a job has ended."""
    until(lambda: not works(up), "all jobs have ended")
    with up.redis() as redis:
        redis.flushall()


def picture(up: Up, ids: Mapping[str, str]) -> list[str]:
    """All that `ls` and `show` say."""
    lists = [outkeep(up, "ls", *which, "--json") for which in ((), ("--lost",), ("--failed",))]
    return [*lists, *(outkeep(up, "show", one, "--kind", kind, "--json") for one, kind in ids.items())]


def test_lists_and_outcomes_are_the_same_after_redis_was_emptied_and_rebuilt(
    up: Up, simulator: Simulator, downstream: Recorder
) -> None:
    lost = simulator.add_file("lost.png", IMAGE)
    simulator.remove_file(lost)
    two = [simulator.add_file("a.png", IMAGE), simulator.add_file("b.txt", b"text")]
    bodies = {
        "image": prediction("image", output=two, model="black-forest-labs/flux-schnell"),
        "tokens": prediction("tokens", output=["a ", "light", "house"], logs="100%"),
        "lost": prediction("lost", output=[lost, two[0]]),
        "failed": prediction("failed", status="failed", output=None, error="out of memory"),
        "canceled": prediction("canceled", status="canceled", output=None),
        "large": prediction("large", output="x" * (2 << 20)),
    }
    for body in bodies.values():
        assert deliver(up, body) == "accepted"
    training = prediction("tuned", output={"weights": two[1]})
    assert deliver(up, training, "/webhooks/replicate/trainings") == "accepted"
    for one in bodies:
        assert told(up, one)["outcome"] == "delivered"
    assert told(up, "tuned", kind="trainings")["outcome"] == "delivered"
    assert told(up, "failed", "gone")["outcome"] == "off"
    until(lambda: outkeep(up, "ls", "--failed"), "the dead letter is listed")
    ids = {**dict.fromkeys(bodies, "prediction"), "tuned": "training"}
    before, heard = picture(up, ids), len(downstream.received)
    assert {json.loads(line)["state"] for line in before[0].splitlines()} <= ENDED
    assert [json.loads(line)["error"] for line in before[2].splitlines()] == ["status_410"]

    empty_redis(up)
    assert outkeep(up, "ls", "--json") == ""
    summary = json.loads(outkeep(up, "rebuild", "--json"))

    assert (summary["predictions"], summary["trainings"], summary["records"]) == (6, 1, 7)
    assert (summary["notifications"], summary["dead_letters"], summary["unreadable"]) == (0, 1, [])
    assert picture(up, ids) == before
    assert deliver(up, bodies["image"]) == "duplicate"
    assert len(downstream.received) == heard


def test_what_is_owed_and_what_was_given_up_is_told_after_a_rebuild(
    up: Up, downstream: Recorder, answer: Downstream
) -> None:
    assert deliver(up, prediction("owed", status="failed", output=None)) == "accepted"
    assert told(up, "owed", "gone")["outcome"] == "off"
    assert told(up, "owed")["outcome"] == "delivered"
    (up.outputs / "predictions/owed/told-recorder.json").unlink()
    empty_redis(up)
    outkeep(up, "rebuild")
    downstream.wait_for(lambda them: len(recorded(them, "owed")) == 2, "the handler is told what it was owed")
    assert len({request.header("webhook-id") for request in recorded(downstream, "owed")}) == 1
    answer.is_gone = False
    outkeep(up, "handlers", "enable", "gone")  # it is on, since Redis has forgotten; that is no failure
    outkeep(up, "replay", "--failed", "--handler", "gone")
    until(lambda: told(up, "owed", "gone")["outcome"] == "delivered", "the dead letter is told")
    until(lambda: outkeep(up, "ls", "--failed", "--json") == "", "no dead letter is left")


def recorded(downstream: Recorder, prediction_id: str) -> list[Received]:
    return [request for request in downstream.of(prediction_id) if request.path == "/recorder"]


def age(path: Path, past: timedelta) -> None:
    """Let a manifest say what it said when it was written so long ago."""
    manifest = json.loads(path.read_text())
    for key in ("received_at", "stored_at"):
        manifest[key] = format_time(datetime.fromisoformat(manifest[key]) - past)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("how", ["id", "since"])
@pytest.mark.parametrize("days", [1, 31])
def test_a_replay_tells_days_later_with_redis_empty_and_links_that_are_good(
    up: Up, simulator: Simulator, downstream: Recorder, days: int, how: str
) -> None:
    one = f"replayed-{days}-{how}"
    assert deliver(up, prediction(one, output=[simulator.add_file("out.png", IMAGE)])) == "accepted"
    assert told(up, one)["outcome"] == "delivered"
    [first] = recorded(downstream, one)
    age(up.outputs / "predictions" / one / "prediction.json", timedelta(days=days))
    empty_redis(up)

    wanted = [one] if how == "id" else ["--since", f"{days}d", "--handler", "recorder"]
    if how == "since":
        age(up.outputs / "predictions" / one / "prediction.json", timedelta(minutes=-5))
    outkeep(up, "replay", *wanted)

    downstream.wait_for(lambda them: len(recorded(them, one)) == 2, "the handler is told again")
    again = recorded(downstream, one)[1]
    downstream.verify(again)
    assert again.header("webhook-id") == first.header("webhook-id")
    [file] = again.event["data"]["files"]
    assert PLAIN.get(file["url"]).content == IMAGE
    expires = int(parse_qs(urlsplit(file["url"]).query)["expires"][0])
    assert expires > datetime.now(UTC).timestamp() + 7 * 86400
    assert again.event["data"]["query"] == {"order": "17"}


def test_what_was_removed_is_gone_and_a_late_delivery_brings_nothing_back(
    up: Up, simulator: Simulator, downstream: Recorder
) -> None:
    body = prediction(
        "private", input={"prompt": "secret of private"}, output=[simulator.add_file("me.png", IMAGE)]
    )
    assert deliver(up, body) == "accepted"
    assert told(up, "private")["outcome"] == "delivered"
    until(lambda: not works(up), "its jobs have ended")
    said = json.loads(outkeep(up, "rm", "private", "--json"))
    names = {name.rpartition("/")[2] for name in said["objects"]}
    assert names == {"output-0.png", "prediction.json", "told-recorder.json"}
    assert deliver(up, body) == "duplicate"
    assert deliver(up, prediction("private", status="processing", output=None)) == "stale"
    assert not (up.outputs / "predictions/private").exists()
    link = downstream.of("private")[0].event["data"]["files"][0]["url"]
    assert PLAIN.get(link).status_code == 404
    with up.redis() as redis:
        outkeep(up, "rebuild")
        left = [key for key in redis.scan_iter() if b"private" in key]
        assert left == [b"outkeep:removed:prediction:private"]
    assert len(downstream.of("private")) == 1
    assert "secret of private" not in up.text()
