"""A deployment whose predictions have ended: records, jobs, files, manifests and outcomes by our own code."""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from redis import Redis
from rq.job import Job

from app.accept import queues
from app.accept.changes import Notified, note_attempt
from app.accept.records import Arrival, Records
from app.core import handlers, manifest, outcomes
from app.core.manifest import KeptFile, Manifest, Receipt, format_time
from app.core.names import (
    NOTIFY_QUEUE,
    PERSIST_QUEUE,
    REMOVED,
    Kind,
    notification_id,
    notify_job_id,
    object_name,
    outcome_name,
)
from app.core.outcomes import Told
from app.core.outputs import OutputFile
from app.core.prediction import parse
from app.storage.store import Storage

SECRET = "whsec_Z2FsbGVyeS1nYWxsZXJ5LWdhbGxlcnkh"
DAY = 86400
TTL = 7 * DAY


def handlers_text(*names: str) -> str:
    """A handlers file; nobody listens there."""
    return "".join(
        f'[[handler]]\nname = "{name}"\nurl = "http://127.0.0.1:9/"\nsecret = "{SECRET}"\n' for name in names
    )


class Deployment:
    """Keeps in `folder`, with `names` as its handlers, at a time of the caller's choosing."""

    def __init__(
        self,
        redis: Redis,
        folder: Path,
        now: datetime,
        names: Sequence[str] = ("gallery",),
        *,
        storage: str | None = None,
    ) -> None:
        self.redis = redis
        self.folder = folder
        self.now = now
        self.storage = Storage(storage or (folder / "outputs").as_uri())
        self.records = Records(redis, ttl=TTL)
        text = handlers_text(*names)
        (folder / "handlers.toml").write_text(text)
        self.handlers = handlers.parse(text, lambda secret: secret)

    def receive(
        self, prediction_id: str, kind: Kind = Kind.PREDICTION, *, ago: float = 0, **keys: Any
    ) -> tuple[Manifest, Job]:
        """Accept an event as the receiver does; the manifest that will be written, and its persist job."""
        at = self.now - timedelta(seconds=ago)
        raw = {"id": prediction_id, "status": "succeeded", "model": "owner/model", "output": "http://x/0.png"}
        body = json.dumps({**raw, "input": {"prompt": f"secret of {prediction_id}"}, **keys}).encode()
        prediction = parse(body, kind)
        number = prediction_id if kind is Kind.PREDICTION else f"{prediction_id}_{kind}"
        receipt = Receipt(at, f"msg_{number}", query={"order": "17"}, context={"user": 7})
        job = queues.persist_job(self.redis, kind, prediction_id, timeout=60)
        self.records.accept([Arrival(prediction, body, receipt, job)], at)
        file = KeptFile("/output", "http://x/0.png", "output-0.png", "image/png", 4, "ab" * 32)
        return manifest.build(prediction, [(OutputFile("/output", ""), file)], None, receipt, at), job

    def keep(
        self,
        prediction_id: str,
        *,
        ago: float = 0,
        kind: Kind = Kind.PREDICTION,
        told: bool = True,
        **keys: Any,
    ) -> Manifest:
        """Receive and store a prediction some seconds ago; its handlers were told, or are still to be."""
        document, job = self.receive(prediction_id, kind, ago=ago, **keys)
        self.storage.put_bytes(object_name(kind, prediction_id, "output-0.png"), b"\x89PNG")
        self.storage.commit(document)
        jobs = [queues.notify_job(self.redis, handler.name, kind, prediction_id) for handler in self.handlers]
        counts = {"files": len(document.kept), "lost": len(document.lost)}
        self.records.dispatch(kind, prediction_id, document.stored_at, counts, jobs)
        self.end(PERSIST_QUEUE, job.id)
        if told:
            for handler in self.handlers:
                self.tell(prediction_id, handler.name, kind=kind)
        return document

    def tell(
        self, prediction_id: str, handler: str, told: Told | None = None, *, kind: Kind = Kind.PREDICTION
    ) -> None:
        """Note how a delivery ended, and forget its job."""
        told = told or Told("delivered", 1, self.now, None)
        document = outcomes.document(notification_id(handler, kind, prediction_id), told)
        name = object_name(kind, prediction_id, outcome_name(handler))
        self.storage.put_bytes(name, json.dumps(document).encode())
        notified = Notified(
            handler, told.outcome, told.attempts, format_time(told.at), told.error, told.child
        )
        note_attempt(self.redis, kind, prediction_id, notified)
        self.end(NOTIFY_QUEUE, notify_job_id(handler, kind, prediction_id))

    def end(self, name: str, job_id: str) -> None:
        """Let a job be gone, as it is an hour after its end."""
        job = queues.queue(name, self.redis).fetch_job(job_id)
        if job is not None:
            job.delete()

    def queued(self, name: str = NOTIFY_QUEUE) -> list[str]:
        return list(queues.queue(name, self.redis).job_ids)

    def stored(self) -> list[str]:
        """The paths of all that is stored, what no list shows included, but no notes of removals."""
        outputs = self.folder / "outputs"
        paths = [path.relative_to(outputs) for path in outputs.rglob("*") if path.is_file()]
        return sorted(str(path) for path in paths if path.parts[0] != REMOVED)
