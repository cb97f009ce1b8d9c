"""A deployment that reconciles with a simulated Replicate, pass by pass, at a time of the test's choosing."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from redis import Redis

from app.accept import queues
from app.accept.arrivals import make_arrival
from app.accept.records import Accepted, Record, Records
from app.core.manifest import Receipt, format_time
from app.core.names import PERSIST_QUEUE, Kind
from app.core.prediction import from_object
from app.core.reconciling import Found
from app.deployment import Deployment, connect, prepare
from app.reconcile.memory import Memory
from app.reconcile.passes import Pace, Report, Tell, reconciler_of, say_nothing
from app.simulator import Simulator
from app.storage.store import Storage
from app.telemetry.tally import Tally
from tests.receive.web import environment

PREDICTION, TRAINING = Kind.PREDICTION, Kind.TRAINING
PUBLIC_URL = "https://outkeep.example.com"
HOOK = f"{PUBLIC_URL}/webhooks/replicate"


class Desk:
    """`now` moves only when told to; Outkeep first ran a day before it."""

    def __init__(self, valkey_url: str, redis: Redis, folder: Path, simulator: Simulator) -> None:
        self.redis = redis
        self.simulator = simulator
        self.now = datetime(2026, 3, 16, 12, 0, tzinfo=UTC)
        self.memory = Memory(redis)
        self.memory.note_start(self.now - timedelta(days=1))
        self.records = Records(redis, ttl=86400)
        self.storage = Storage((folder / "outputs").as_uri())
        self.tally = Tally()
        self._url, self._folder = valkey_url, folder
        self.settings: dict[str, str] = {"OUTKEEP_PUBLIC_URL": PUBLIC_URL}

    @property
    def deployment(self) -> Deployment:
        token = {"REPLICATE_API_TOKEN": self.simulator.token, "REPLICATE_BASE_URL": self.simulator.url}
        given = environment(self._url, self._folder, **{**token, **self.settings})
        return connect(*prepare(given))

    def ago(self, **parts: float) -> str:
        return format_time(self.now - timedelta(**parts))

    def finish(self, identity: str, kind: Kind = PREDICTION, **keys: Any) -> dict[str, Any]:
        """Something that ended at Replicate five minutes ago, of which no webhook tells."""
        given = {
            "id": identity,
            "status": "succeeded",
            "input": {"prompt": "a lighthouse"},
            "output": "done",
            "logs": "l",
            "error": None,
            "created_at": self.ago(minutes=8),
            "completed_at": self.ago(minutes=5),
            **keys,
        }
        self.simulator.finish(kind, given)
        return given

    def start(self, identity: str, kind: Kind = PREDICTION, **keys: Any) -> dict[str, Any]:
        """Something that runs at Replicate."""
        running = {"status": "processing", "output": None, "completed_at": None}
        return self.finish(identity, kind, **{**running, **keys})

    async def reconcile(self, since: datetime | None = None, tell: Tell = say_nothing) -> Report:
        """One pass, as a process of its own would make it."""
        report = Report()
        pace = Pace(interval=0)
        async with reconciler_of(
            self.deployment, self.redis, lambda: self.now, tally=self.tally, pace=pace, tell=tell
        ) as reconciler:
            await reconciler.run(report, since)
        return report

    def run(self, since: datetime | None = None) -> dict[str, int]:
        """One pass; what it found, over both kinds."""
        report = asyncio.run(self.reconcile(since))
        counts = sum((report.counts[kind] for kind in Kind), start=type(report.counts[PREDICTION])())
        return {str(found): counts[found] for found in Found if counts[found]}

    def ask(self) -> dict[str, int]:
        """Ask for what was created here; what it found."""

        async def ask() -> Report:
            report, pace = Report(), Pace(interval=0)
            async with reconciler_of(
                self.deployment, self.redis, lambda: self.now, tally=self.tally, pace=pace
            ) as reconciler:
                await reconciler.ask(report)
            return report

        return {str(found): count for found, count in asyncio.run(ask()).counts[PREDICTION].items()}

    def record(self, identity: str, kind: Kind = PREDICTION) -> Record:
        record = self.records.get(kind, identity)
        assert record is not None
        return record

    def jobs(self) -> list[str]:
        """The ids of the persist jobs."""
        return list(queues.queue(PERSIST_QUEUE, self.redis).job_ids)

    def fetched(self, kind: Kind = PREDICTION, identity: str = ".*") -> int:
        """How many single objects were asked for."""
        return self.simulator.requests(f"/v1/{kind.folder}/{identity}")

    def listed(self, kind: Kind = PREDICTION) -> int:
        """How many pages were asked for."""
        return self.simulator.requests(f"/v1/{kind.folder}")


def create(desk: Desk, identity: str) -> None:
    """What `outkeep run` and follow-ups write down of a prediction without a webhook."""
    raw = {"id": identity, "status": "starting"}
    receipt = Receipt(desk.now, None, "run", context={"order": "42"})
    parsed = from_object(raw, PREDICTION)
    arrival = make_arrival(parsed, b"", receipt, desk.now, is_asked_for=True)
    assert desk.records.accept([arrival], desk.now) == [Accepted.PROGRESS]
