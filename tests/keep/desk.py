"""The persist service on a real Valkey and a real folder, run by run, at a time of the test's choosing."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

from redis import Redis
from rq.queue import Queue

from app.accept import queues
from app.accept.claim_check import ClaimCheck
from app.accept.group_commit import GroupCommit
from app.accept.records import Accepted, Arrival, LiveRecords, Record, Records
from app.core.handlers import Handler
from app.core.hosts import HostRules
from app.core.inputs import Uploads
from app.core.links import link_keys
from app.core.manifest import Receipt, format_time
from app.core.names import NOTIFY_QUEUE, PERSIST_QUEUE, Kind
from app.core.policy import State, Tries
from app.core.prediction import parse
from app.replicate.guard import guarded_session
from app.storage.store import Storage
from workers.engine.async_worker import AsyncWorker
from workers.keep.collect import Collector, Limits
from workers.keep.download import MEMORY, Memory
from workers.keep.fetch import Fetcher
from workers.keep.inputs import InputFetcher, Inputs, OwnFiles
from workers.keep.output_file import Keeper
from workers.keep.persist import Persist

PUBLIC_URL = "https://outkeep.example/base"
KEYS = link_keys([b"k" * 32])
ID = "zxnmcx7c2p3wp0fkexvxs6zf6p"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 40
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(range(256)) * 10
WAV = b"RIFF\x24\x08\0\0WAVEfmt " + bytes(2000)
ZIP = b"PK\x03\x04" + bytes(range(256))


class Quick(AsyncWorker):
    """Does not listen for commands of `rq`, which takes a second to end."""

    def subscribe(self) -> None:
        pass

    def unsubscribe(self) -> None:
        pass


class Desk:
    """What is received here is kept below `folder`; `now` moves only when told to."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self.redis = redis
        self.outputs = folder / "outputs"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.records = Records(redis, ttl=86400)
        self.storage = Storage(self.outputs.as_uri())
        self.hosts = "replicate.delivery"
        self.handlers: Sequence[Handler] = ()
        self.limits = Limits(1000, 0)
        self.memory = MEMORY
        self.opening: Callable[[Fetcher], InputFetcher] | None = None
        self.uploads: Uploads | None = None
        self.patience = 10.0
        self.now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
        self.tries: State = {}
        self.attempt = 0

    def trust(self, *origins: str) -> None:
        """Permit downloads from `http://127.0.0.1:PORT`."""
        self.hosts = " ".join(["replicate.delivery", *origins])

    def keep_inputs(
        self, base_url: str = "https://api.replicate.com", token: str | None = "t", *, patience: float = 10.0
    ) -> None:
        """Keep inputs too; `patience` is how much longer than the outputs they may take."""
        self.uploads = Uploads.at(base_url, token) if token else None
        own = OwnFiles(self.storage, PUBLIC_URL, KEYS, self.temporary, 0, lambda: self.now)
        self.opening = lambda fetcher: InputFetcher(fetcher, base_url, self.uploads, own)
        self.patience = patience

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def receive(
        self,
        output: Any,
        *,
        kind: Kind = Kind.PREDICTION,
        context: Mapping[str, Any] = MappingProxyType({"user": 7}),
        **keys: Any,
    ) -> dict[str, Any]:
        """Accept the event of a prediction that ended just now, as the receiver does; its object."""
        arrival = self.arrival(output, kind=kind, context=context, **keys)
        checked_in = ClaimCheck(self.storage, self.records, patience=30).check_in(arrival)
        [outcome] = self.records.accept([checked_in], self.now)
        assert outcome is Accepted.ACCEPTED
        return arrival.prediction.raw

    def arrival(
        self,
        output: Any,
        *,
        kind: Kind = Kind.PREDICTION,
        context: Mapping[str, Any] = MappingProxyType({"user": 7}),
        **keys: Any,
    ) -> Arrival:
        """The event of a prediction that ended just now."""
        prediction = {
            "id": ID,
            "status": "succeeded",
            "input": {"prompt": "a lighthouse, größer"},
            "output": output,
            "completed_at": format_time(self.now),
            "a key of the future": [1.0, {"x": None}],
            **keys,
        }
        body = json.dumps(prediction, ensure_ascii=False).encode()
        job = queues.persist_job(self.redis, kind, ID, timeout=4200)
        receipt = Receipt(self.now, "msg_received", query={"customId": "123"}, context=dict(context))
        return Arrival(parse(body, kind), body, receipt, job)

    @asynccontextmanager
    async def service(self) -> AsyncIterator[Persist]:
        rules = HostRules.parse(self.hosts)
        origins = rules.origins | ({self.uploads.origin} if self.uploads else set())
        commit = GroupCommit(self.redis)
        records = LiveRecords(commit, self.records)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(commit.close)
            session = await stack.enter_async_context(guarded_session(origins=origins))
            fetcher = Fetcher(
                session,
                rules,
                self.temporary,
                max_bytes=1_000_000,
                disk_floor=0,
                memory=Memory(self.memory),
                stall_seconds=5,
            )
            keeper = Keeper(self.storage, fetcher, self.temporary)
            collector = Collector(
                records, keeper, self.temporary, self.limits, lambda: self.now, lambda: 0.0, rules
            )
            inputs = None
            if self.opening is not None:
                input_keeper = Keeper(self.storage, self.opening(fetcher), self.temporary)
                inputs = Inputs(records, input_keeper, self.limits.max_files, self.patience)
            yield Persist(
                redis=self.redis,
                records=records,
                storage=self.storage,
                keeper=keeper,
                collector=collector,
                handlers=self.handlers,
                clock=lambda: self.now,
                jitter=lambda: 0.0,
                inputs=inputs,
            )

    async def run(self, kind: Kind = Kind.PREDICTION) -> float | None:
        """One run of the job, with a service of its own and what RQ keeps for it between runs."""
        self.attempt += 1
        async with self.service() as service:
            state = json.loads(json.dumps(self.tries))
            wait = await service.run(kind, ID, Tries(state), attempt=self.attempt)
        self.tries = state
        return wait

    def work(self, kind: Kind = Kind.PREDICTION) -> float | None:
        return asyncio.run(self.run(kind))

    def record(self, kind: Kind = Kind.PREDICTION) -> Record:
        record = self.records.get(kind, ID)
        assert record is not None
        return record

    def manifest(self, kind: Kind = Kind.PREDICTION) -> dict[str, Any]:
        """The manifest as it stands on the disk."""
        text = (self.outputs / kind.folder / ID / "prediction.json").read_text()
        document: dict[str, Any] = json.loads(text)
        return document

    def file(self, name: str, kind: Kind = Kind.PREDICTION) -> bytes:
        return (self.outputs / kind.folder / ID / name).read_bytes()

    def files(self) -> dict[str, bytes]:
        """Everything in storage, by its path."""
        paths = [path for path in self.outputs.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.outputs)): path.read_bytes() for path in paths}

    @property
    def is_committed(self) -> bool:
        return self.storage.read_manifest(Kind.PREDICTION, ID) is not None

    def queue(self, name: str) -> Queue:
        return queues.queue(name, self.redis)

    @property
    def told(self) -> list[str]:
        """The ids of the notify jobs."""
        return list(self.queue(NOTIFY_QUEUE).job_ids)

    @property
    def waiting(self) -> list[str]:
        """The ids of the persist jobs."""
        return list(self.queue(PERSIST_QUEUE).job_ids)
