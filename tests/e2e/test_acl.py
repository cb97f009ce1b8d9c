"""Outkeep as a user of Redis with no more than the rights that the README names."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from app.simulator import Simulator
from tests import forked
from tests.e2e.recorder import Recorder, recorder
from tests.e2e.running import Up, until
from tests.e2e.separate import SECRET_KEY
from tests.own_valkey import OwnValkey, own_valkey
from tests.reader import README
from tests.receive.web import prediction

USER = re.search(r"^user outkeep on >password (.+)$", README, re.M)
FOLLOW_UP = """
[[handler]]
name = "again"
model = "outkeep/image"
predict = "outkeep/caption"
input = { prompt = "{input.prompt}", image = "{files[0].url}" }

[[handler]]
name = "note"
job = "notes.note"
"""


def ask(redis: Redis, *command: str) -> Any:
    return redis.execute_command(*command)  # type: ignore[no-untyped-call]


@pytest.fixture
def valkey() -> Iterator[OwnValkey]:
    with own_valkey() as server:
        server.start()
        assert USER is not None
        ask(server.redis, "ACL", "SETUSER", "outkeep", "on", ">password", *USER[1].split())
        ask(server.redis, "ACL", "LOG", "RESET")
        yield server


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(pace=0.1) as running:
        yield running


@pytest.fixture
def recording() -> Iterator[Recorder]:
    with recorder() as running:
        yield running


@pytest.fixture
def up(tmp_path: Path, valkey: OwnValkey, simulator: Simulator, recording: Recorder) -> Iterator[Up]:
    running = Up(tmp_path, handlers=recording.handler() + FOLLOW_UP)
    running.environment |= {
        "REDIS_URL": valkey.url.replace("unix://", "unix://outkeep:password@"),
        "OUTKEEP_SECRET_KEY": SECRET_KEY,
        "OUTKEEP_OUTPUT_HOSTS": simulator.url,
        "OUTKEEP_PUBLIC_URL": running.url,
        "OUTKEEP_NOTIFY_PRIVATE": "true",
        "REPLICATE_API_TOKEN": simulator.token,
        "REPLICATE_BASE_URL": simulator.url,
        "REPLICATE_WEBHOOK_SECRET": simulator.secret,
    }
    (tmp_path / "notes.py").write_text("def note(event):\n    return event['data']['id']\n")
    try:
        running.start()
        yield running
    finally:
        running.clear()


def outkeep(up: Up, *arguments: str) -> str:
    """What a command of ours says."""
    done = forked.run(
        [sys.executable, "-m", "app.cli", *arguments],
        cwd=up.folder, env=up.environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_a_user_with_the_rights_that_the_readme_names_is_refused_nothing(
    up: Up, valkey: OwnValkey, recording: Recorder
) -> None:
    outkeep(up, "run", "outkeep/image", "-i", "prompt=a lighthouse")
    recording.wait_for(lambda told: len(told.ids()) >= 2, "the prediction and its follow-up are told")
    (up.folder / "large.json").write_bytes(prediction("large-one", logs="x" * (2 << 20)))
    assert outkeep(up, "send", str(up.folder / "large.json")).startswith("202 ")
    recording.wait_for(lambda told: "large-one" in told.ids(), "a large event is told")
    until((up.outputs / "predictions/large-one/told-note.json").exists, "a function has run")

    doctor = outkeep(up, "doctor")
    said = {
        " ".join(command): outkeep(up, *command)
        for command in (
            ("ls",),
            ("ls", "--failed"),
            ("show", "large-one"),
            ("handlers",),
            ("replay", "large-one"),
            ("reconcile", "--since", "1h"),
            ("rebuild",),
            ("rm", "large-one", "--yes"),
        )
    }
    info = [sys.executable, "-m", "rq.cli", "info", "--url", up.environment["REDIS_URL"]]
    said["rq info"] = forked.run(info, capture_output=True, text=True, check=False).stderr

    assert USER is not None
    statistics = valkey.redis.info("commandstats")
    used = {name.removeprefix("cmdstat_").partition("|")[0] for name in statistics}
    for category in re.findall(r"\+@(\w+)", USER[1]):
        commands = valkey.redis.acl_cat(category)
        assert used & {*commands}, f"{category} is not needed"
    denied = [(entry["object"], entry["context"]) for entry in valkey.redis.acl_log()]
    assert denied == [], said
    assert "NoPermission" not in doctor + "".join(said.values()) + up.text()
    told_of_redis = [line for line in doctor.splitlines() if line[5:].startswith("redis")]
    assert [line[:5] for line in told_of_redis] == ["ok   "] * len(told_of_redis) != [], doctor


@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("CONFIG", "SET", "appendonly", "no"),
        ("ACL", "SETUSER", "other", "on"),
        ("SHUTDOWN",),
        ("REPLICAOF", "127.0.0.1", "1"),
        ("MONITOR",),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("GET", "somebody-elses"),
        ("SET", "somebody-elses", "1"),
        ("PUBLISH", "somebody-elses", "1"),
        ("EVAL", "return redis.call('DEL', 'somebody-elses')", "0"),
    ],
)
def test_such_a_user_may_do_nothing_else(valkey: OwnValkey, command: tuple[str, ...]) -> None:
    url = valkey.url.replace("unix://", "unix://outkeep:password@")
    with Redis.from_url(url) as redis, pytest.raises(ResponseError, match="permission"):
        ask(redis, *command)
