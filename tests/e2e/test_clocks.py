"""A whole host whose clock is wrong, or steps, beside one that is right, on one Redis and one storage."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.core.names import NOTIFY_QUEUE, PERSIST_QUEUE, RETENTION_TURN
from tests import forked
from tests.e2e.recorder import DEFAULT_SECRET, Received, Recorder, recorder
from tests.e2e.running import unfinished, until
from tests.e2e.separate import Separate
from tests.e2e.traffic import finished
from tests.own_valkey import own_valkey
from tests.receive.web import signed
from tests.serving import PLAIN, Answering, serving
from tests.wrong_clock import WrongClock
from workers.repair.retention import LEASE

pytestmark = pytest.mark.slow

COUNT = 8


class Busy:
    """A file host that is busy when a file is asked for the first time; `answered` counts whole files."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.url = ""

    def answer(self, request: Answering) -> None:
        self.asked[request.path] += 1
        first = self.asked[request.path] == 1
        body = b"" if first else request.path.encode() * 100
        if first:
            request.answer(503, body, retry_after="1")
        else:
            request.answer(200, body)
            self.answered[request.path] += 1


@contextmanager
def busy_host() -> Iterator[Busy]:
    busy = Busy()

    class Handler(Answering):
        def do_GET(self) -> None:
            busy.answer(self)

    with serving(Handler) as busy.url:
        yield busy


class Refusing:
    """A handler that refuses what it is told for the first time."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()

    def __call__(self, request: Received) -> int:
        identity = request.event["data"]["id"]
        self.told[identity] += 1
        return 500 if self.told[identity] == 1 else 204


def work(up: Separate, queue: str, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """A worker on a host of its own; it ends with the others of `up`."""
    with up.log.open("ab") as log:
        return forked.Popen(
            [sys.executable, "-m", "app.cli", "work", queue],
            cwd=up.folder,
            env=environment,
            stdout=log,
            stderr=log,
        )  # fmt: skip


@pytest.mark.parametrize(
    "seconds",
    [
        (-30.0,),
        (7200.0,),
        (0.0, 7200.0, -600.0),
        *(pytest.param((skew,), marks=pytest.mark.soak) for skew in (30.0, 600.0, -600.0, -7200.0)),
    ],
)
def test_nothing_is_lost_removed_run_or_told_twice(tmp_path: Path, seconds: tuple[float, ...]) -> None:
    host = WrongClock(tmp_path, seconds[0])
    with own_valkey() as valkey, busy_host() as files, recorder(answer=Refusing()) as downstream:
        valkey.launch()
        settings = {
            "REPLICATE_WEBHOOK_SECRET": DEFAULT_SECRET,
            "OUTKEEP_OUTPUT_HOSTS": files.url,
            "OUTKEEP_RETENTION": "1h",
        }
        up = Separate(tmp_path, valkey, handlers=downstream.handler(), settings=settings)
        right = dict(up.environment)
        up.environment |= host.environment
        others: list[subprocess.Popen[bytes]] = []
        try:
            up.start()
            others = [work(up, queue, right) for queue in (PERSIST_QUEUE, NOTIFY_QUEUE)]
            redis = up.redis()
            until(lambda: redis.scard("rq:workers") == 4, "all workers are registered")
            for number in range(COUNT):
                identity = f"pred{number}"
                body = httpx.Request(
                    "POST", up.hook, json=finished(identity, [f"{files.url}/{identity}.bin"])
                ).content
                answer = PLAIN.post(up.hook, content=body, headers=signed(body))
                assert answer.status_code == 202, answer.text
                assert answer.json() == {"outcome": "accepted"}
                host.step_to(seconds[number * len(seconds) // COUNT])
            require_all_told(downstream)
            until(lambda: not unfinished(redis, PERSIST_QUEUE, NOTIFY_QUEUE), "all jobs have ended")

            # Whoever starts sweeps at once, and removes what is too old.
            redis.delete(RETENTION_TURN)
            others += [work(up, PERSIST_QUEUE, up.environment)]
            until(lambda: redis.scard("rq:workers") == 5, "the wrong one has started")
            others += [work(up, PERSIST_QUEUE, right)]
            until(lambda: redis.ttl(RETENTION_TURN) > LEASE, "somebody has walked through the storage")

            kept = {path.parent.name for path in up.outputs.glob("predictions/*/prediction.json")}
            assert kept == {f"pred{number}" for number in range(COUNT)}
            for number in range(COUNT):
                name = f"/pred{number}.bin"
                stored = (up.outputs / "predictions" / f"pred{number}" / "output-0.bin").read_bytes()
                assert stored == name.encode() * 100
                assert (files.asked[name], files.answered[name]) == (2, 1)
            assert {len(downstream.of(f"pred{number}")) for number in range(COUNT)} == {2}
            assert len({one.header("webhook-id") for one in downstream.received}) == COUNT
            for one in downstream.received:
                downstream.verify(one)  # its timestamp, too
            require_said(up, seconds[-1])
        finally:
            for process in others:
                process.terminate()
            for process in others:
                process.wait(60)
            up.clear()


def require_all_told(downstream: Recorder) -> None:
    downstream.wait_for(
        lambda them: all(len(them.of(f"pred{number}")) >= 2 for number in range(COUNT)), "all is told"
    )


def require_said(up: Separate, skew: float) -> None:
    """Aloud: in readiness, doctor, metrics and log."""
    ready = PLAIN.get(f"{up.url}/readyz", timeout=5)
    assert ready.status_code == 200
    assert f"warn clock: {skew:+.0f}" in ready.text.replace(".0 s", " s").replace(".1 s", " s")
    assert "warn clocks: " in ready.text
    metrics = PLAIN.get(f"{up.url}/metrics", timeout=5).text
    [line] = [one for one in metrics.splitlines() if one.startswith("outkeep_clock_skew_seconds{")]
    assert abs(float(line.split()[-1]) - skew) < 2
    assert '"event": "clock_skew"' in up.text()
    doctor = forked.run(
        [sys.executable, "-m", "app.cli", "doctor"],
        cwd=up.folder, env=up.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [line for line in doctor.stdout.splitlines() if " clock" in line[:12]]
    assert any(line.startswith("fail clock:" if abs(skew) >= 60 else "warn clock:") for line in said), said
    assert any(line.startswith("warn clocks:") for line in said), said
