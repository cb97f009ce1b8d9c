"""Steady traffic of finished predictions, and what must be true of it at the end."""

import hashlib
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from redis import Redis
from rq import Queue
from rq.registry import DeferredJobRegistry, FailedJobRegistry, ScheduledJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from app.core.names import Kind
from app.simulator import Simulator
from app.storage import Storage
from tests.e2e.file_host import FileHost
from tests.e2e.recorder import Recorder
from tests.e2e.running import Up, until

RETRY_DELAYS = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
"""As Replicate's sender waits, but sooner; the last attempt comes 25 s after the first."""

RATE = 25.0
"""Predictions a second."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class Traffic:
    """`count` predictions and trainings of mixed shapes on their way to `up`, drawn from `seed`."""

    def __init__(self, count: int, *, seed: int, host: FileHost, simulator: Simulator, up: Up) -> None:
        self._random = random.Random(seed)
        self._host = host
        self._simulator = simulator
        self._up = up
        self.sources: dict[tuple[Kind, str], list[str]] = {}
        for _ in range(count):
            kind = self._random.choices([Kind.PREDICTION, Kind.TRAINING], [9, 1])[0]
            identity = "".join(self._random.choices(_ALPHABET, k=26))
            files = self._random.choices([0, 1, 2, 5], [1, 6, 2, 1])[0]
            self.sources[kind, identity] = [self._file(number) for number in range(files)]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._send)

    @contextmanager
    def flowing(self) -> Iterator["Traffic"]:
        """Send during the block, and until all has been sent."""
        self._thread.start()
        try:
            yield self
        except BaseException:
            self._stopping.set()
            raise
        finally:
            self._thread.join()

    def acknowledged(self) -> set[str]:
        """The ids that were answered with 2xx so far."""
        ids = (identity for _, identity in self.sources)
        return {identity for identity in ids if any(_is_good(one.status) for one in self._attempts(identity))}

    def wait_until_acknowledged(self, count: int) -> None:
        until(lambda: len(self.acknowledged()) >= count, f"{count} predictions are acknowledged")

    def _attempts(self, identity: str) -> list[Any]:
        return self._simulator.attempts(identity)

    def _file(self, number: int) -> str:
        content = b"\x00outkeep" + self._random.randbytes(self._random.randint(1, 60_000))
        return self._host.add(f"out-{number}.bin", content)

    def _send(self) -> None:
        for (kind, identity), sources in self.sources.items():
            hook = self._up.hook if kind is Kind.PREDICTION else f"{self._up.hook}/trainings"
            self._simulator.finish(kind, _finished(identity, sources), hook)
            if self._stopping.wait(1 / RATE):
                return


def _finished(identity: str, sources: list[str]) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {
        "completed_at": now,
        "created_at": now,
        "error": None,
        "id": identity,
        "input": {"prompt": "traffic"},
        "logs": "",
        "metrics": {"predict_time": 0.1},
        "model": "outkeep/traffic",
        "output": sources or ["no ", "file ", "but ", "text"],
        "started_at": now,
        "status": "succeeded",
        "version": "hidden",
    }


def _is_good(status: int | None) -> bool:
    return status is not None and 200 <= status < 300


def require_nothing_lost(traffic: Traffic, up: Up, host: FileHost, recorder: Recorder) -> None:
    """Wait until all is kept and told, then compare every byte and look for what should not be there."""
    host.hurry()
    identities = {identity for _, identity in traffic.sources}
    until(lambda: traffic.acknowledged() == identities, "everything sent is acknowledged in the end")
    recorder.wait_for(lambda them: them.ids() >= identities, f"all are told\n{up.text()[-3000:]}")
    with up.redis() as redis:
        until(lambda: not _work_left(redis), "no work is left")
    expected = set()
    for (kind, identity), sources in traffic.sources.items():
        expected |= _require_kept(up, host, kind, identity, sources)
        told = recorder.of(identity)
        for request in told:
            recorder.verify(request)
        assert len({request.header("webhook-id") for request in told}) == 1
        assert told[0].event["type"] == f"{kind}.succeeded"
    assert recorder.ids() == identities
    assert set(Storage(up.outputs.as_uri()).names("")) == expected
    assert [path.name for path in (up.data / "tmp").rglob("*") if path.is_file()] == []


def _require_kept(up: Up, host: FileHost, kind: Kind, identity: str, sources: list[str]) -> set[str]:
    """Compare what is stored of one prediction with its sources; the names of all its objects."""
    folder = up.outputs / kind.folder / identity
    manifest = json.loads((folder / "prediction.json").read_text())
    kept = manifest["files"]
    assert [file["error"] for file in kept] == [None] * max(1, len(sources))
    text: list[str | None] = [None]
    assert [file["source"] for file in kept] == (sources or text)
    for file in kept:
        digest = hashlib.sha256((folder / file["name"]).read_bytes()).hexdigest()
        wanted = host.sha256(file["source"]) if sources else hashlib.sha256(b"no file but text").hexdigest()
        assert digest == file["sha256"] == wanted
    names = {"prediction.json", "told-recorder.json"} | {file["name"] for file in kept}
    return {f"{kind.folder}/{identity}/{name}" for name in names}


def _work_left(redis: Redis) -> dict[str, int]:
    """How many jobs stand where, but for those that are done."""
    counts = {}
    for name in ("persist", "notify"):
        queue = Queue(name, connection=redis, serializer=JSONSerializer)
        counts[name] = queue.count + redis.llen(queue.intermediate_queue_key)
        for registry in (StartedJobRegistry, ScheduledJobRegistry, FailedJobRegistry, DeferredJobRegistry):
            counts[f"{name} {registry.__name__}"] = registry(queue=queue).get_job_count(cleanup=False)
    return {place: count for place, count in counts.items() if count}
