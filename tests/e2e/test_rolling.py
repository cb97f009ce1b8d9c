"""A rolling restart: real processes that are replaced one by one by such with another handlers file."""

import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from app.core.names import NOTIFY_QUEUE, PERSIST_QUEUE, process_key
from tests import forked
from tests.e2e.recorder import DEFAULT_SECRET, Recorder, recorder
from tests.e2e.running import unfinished, until
from tests.e2e.separate import Separate, running_separately
from tests.e2e.traffic import finished
from tests.receive.web import signed
from tests.serving import PLAIN

pytestmark = pytest.mark.slow

ROLES = ("receiver", "persist", "notify")


def deliver(up: Separate, identity: str) -> None:
    body = httpx.Request("POST", up.hook, json=finished(identity, [])).content
    answer = PLAIN.post(up.hook, content=body, headers=signed(body))
    assert answer.json() == {"outcome": "accepted"}
    until((up.outputs / "predictions" / identity / "prediction.json").exists, f"{identity} is stored")


def replace(up: Separate, role: str, number: signal.Signals) -> None:
    """End one process, and start another in its place with the environment of now."""
    pid = up.pids()[role]
    os.kill(pid, number)

    def is_replaced() -> bool:
        up.revive()
        new = up.pids().get(role, pid)
        # Redis may still list the dead one as a worker: the other one counts once it speaks for itself.
        said = f"{role}:{socket.gethostname()}:{new}"
        return new != pid and bool(up.redis().exists(process_key(said))) and up.is_ready()

    until(is_replaced, f"another {role} works")


def doctor(up: Separate) -> str:
    command = [sys.executable, "-m", "app.cli", "doctor"]
    return forked.run(
        command, cwd=up.folder, env=up.environment, capture_output=True, text=True, check=False
    ).stdout


def told(downstream: Recorder, identity: str) -> list[str]:
    return sorted(one.path for one in downstream.of(identity))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(
    "order", [("persist", "notify", "receiver"), ("notify", "receiver", "persist")], ids="-".join
)
def test_no_order_of_restarts_loses_a_notification(
    tmp_path: Path, order: Sequence[str], number: signal.Signals
) -> None:
    """`late` is added; it gets all that was stored since any process knew it, and each once."""
    with recorder() as downstream:
        settings = {"REPLICATE_WEBHOOK_SECRET": DEFAULT_SECRET}
        early, late = downstream.handler("early"), downstream.handler("late")
        with running_separately(tmp_path, handlers=early, settings=settings) as up:
            deliver(up, "before")
            # Who is killed before it has written down whom it tells is followed by one that knows `late`.
            redis = up.redis()
            until(lambda: not unfinished(redis, PERSIST_QUEUE, NOTIFY_QUEUE), "it is told")
            file = tmp_path / "new.toml"
            file.write_text(early + late)
            up.environment["OUTKEEP_HANDLERS"] = str(file)
            for step, role in enumerate(order):
                replace(up, role, number)
                deliver(up, f"after{step}")
                if step == 0:
                    assert "warn handlers file: the handlers file differs" in doctor(up)
            since = [f"after{step}" for step in range(len(order))]
            downstream.wait_for(
                lambda them: all(told(them, one) == ["/early", "/late"] for one in since), "all are told"
            )
            until(lambda: not unfinished(redis, PERSIST_QUEUE, NOTIFY_QUEUE), "all jobs have ended")
            assert told(downstream, "before") == ["/early"]
            assert {one: len(told(downstream, one)) for one in since} == dict.fromkeys(since, 2)
            assert not redis.zcard(f"rq:failed:{NOTIFY_QUEUE}")
