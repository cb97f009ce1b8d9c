"""Redis away under steady traffic: what was acknowledged meanwhile must all be there afterwards."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import cast

from app.core.names import Kind, persist_job_id, record_key
from tests.own_valkey import OwnValkey
from tests.receive.web import BOUND, Web, in_process, prediction, wait_until

SENDERS = 4
STALLS = 3
"""How often the machine may stand still, which makes each sender wait: nobody else may."""

RATE = 25.0
"""Deliveries a second of each sender."""


class Traffic:
    """Ends of ever new predictions, each of which must be acknowledged; `late` are those beyond the bound."""

    def __init__(self, web: Web) -> None:
        self._web = web
        self._numbers = count()
        self._ending = threading.Event()
        self.outcomes: dict[str, str] = {}
        self.faults: list[str] = []
        self.late: list[str] = []

    @contextmanager
    def flowing(self) -> Iterator[None]:
        senders = [threading.Thread(target=self._send) for _ in range(SENDERS)]
        for sender in senders:
            sender.start()
        try:
            yield
        finally:
            self._ending.set()
            for sender in senders:
                sender.join()

    def wait_for(self, outcome: str, number: int) -> None:
        """Until so many more have had this outcome."""
        wanted = self._count(outcome) + number
        wait_until(lambda: self._count(outcome) >= wanted or bool(self.faults), timeout=60)

    def _count(self, outcome: str) -> int:
        return list(self.outcomes.values()).count(outcome)

    def _send(self) -> None:
        while not self._ending.wait(1 / RATE):
            name = f"p{next(self._numbers)}"
            began = time.monotonic()
            try:
                answer = self._web.deliver(prediction(name))
            except OSError as error:
                self.faults.append(f"{name}: {error!r}")
                continue
            took = time.monotonic() - began
            if took > BOUND:
                self.late.append(f"{name}: {took:.1f} s")
            if answer.status == 202:
                self.outcomes[name] = answer.json()["outcome"]
            else:
                self.faults.append(f"{name}: {answer}")


def require_an_outage_loses_nothing(valkey: OwnValkey, folder: Path, *, seconds: float, hangs: bool) -> str:
    """Take Redis away for `seconds` (by SIGSTOP when it `hangs`, else by SIGKILL); the figures, in a line."""
    valkey.start()
    with in_process(valkey.url, folder, OUTKEEP_DISK_FLOOR="0") as (web, process):
        traffic = Traffic(web)
        with traffic.flowing():
            traffic.wait_for("accepted", 50)
            if hangs:
                valkey.signal(signal.SIGSTOP)
            else:
                valkey.kill()
            traffic.wait_for("spooled", 50)
            threading.Event().wait(seconds)
            if hangs:
                valkey.signal(signal.SIGCONT)
            else:
                valkey.start()
            traffic.wait_for("accepted", 50)
        wait_until(lambda: not list((folder / "spool").iterdir()), timeout=300)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert traffic.faults == []
    assert len(traffic.late) <= SENDERS * STALLS, traffic.late
    lost, doubled = _missing(valkey, list(traffic.outcomes))
    assert (lost, doubled) == ([], [])
    assert b"Traceback" not in (folder / "serve.log").read_bytes()
    spooled = sum(outcome == "spooled" for outcome in traffic.outcomes.values())
    return (
        f"{seconds:g} s without Redis: {len(traffic.outcomes)} acknowledged, {spooled} from the spool, 0 lost"
    )


def _missing(valkey: OwnValkey, names: list[str]) -> tuple[list[str], list[str]]:
    """Those without a record or a job, and those with more than one job."""
    with valkey.redis.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.exists(record_key(Kind.PREDICTION, name))
        recorded = pipeline.execute()
    queued = Counter(cast(list[bytes], valkey.redis.lrange("rq:queue:persist", 0, -1)))
    counts = [queued[persist_job_id(Kind.PREDICTION, name).encode()] for name in names]
    found = list(zip(names, recorded, counts, strict=True))
    lost = [name for name, is_recorded, jobs in found if not is_recorded or not jobs]
    return lost, [name for name, _, jobs in found if jobs > 1]
