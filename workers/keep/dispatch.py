"""What follows once a prediction is stored: the record moves on, and a job for each handler tells of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from redis import Redis

from app.accept import queues
from app.accept.records import Records
from app.core.context import lineage
from app.core.errors import Transient
from app.core.handlers import Handler, interested
from app.core.manifest import Manifest
from app.core.names import (
    PERSIST_QUEUE,
    Kind,
    folder_name,
    manifest_name,
    object_name,
    outcome_name,
    split_outcome_name,
)
from app.core.outcomes import Told
from app.maintain.traces import Traces, forget
from app.storage import told as outcome_files
from app.storage.store import Storage


@dataclass(frozen=True)
class Dispatcher:
    """What it works with. Doing it again tells nobody twice."""

    redis: Redis
    records: Records
    storage: Storage
    handlers: Sequence[Handler]
    clock: Callable[[], datetime]

    def dispatch(self, manifest: Manifest, *, quiet: bool) -> None:
        """Move the record on and enqueue one job for each interested handler that was not told yet.

        When it is `quiet` nobody is told, and the outcome files say so: without them a rebuild would tell
        everybody after all. Raises `Removed`. The record shows when it was stored, which can be read from the
        manifest again.
        """
        prediction = manifest.prediction
        place = (prediction.kind, prediction.id)
        self._acknowledge(manifest)
        jobs = []
        for handler in interested(self.handlers, prediction):
            if not self._is_untold(handler, *place, quiet=quiet):
                continue
            if quiet:
                passed_by = Told("off", 0, self.clock(), None)
                outcome_files.write(self.storage, handler.name, *place, passed_by)
            else:
                jobs.append(queues.notify_job(self.redis, handler.name, *place, timeout=handler.patience))
        facts, source = counts(manifest), manifest.receipt.source
        if not self.records.dispatch(*place, manifest.stored_at, facts, jobs, quiet=quiet, source=source):
            self.dispatch(manifest, quiet=False)

    def unsay(self, kind: Kind, prediction_id: str) -> None:
        """Let handlers be told anew of what Cog's token had told of: Replicate itself tells of it now.

        Raises `Transient` while a job tells of the former.
        """
        jobs = [job for job in Traces(self.redis).of(kind, prediction_id) if job.queue != PERSIST_QUEUE]
        if not all(forget(self.redis, job) for job in jobs):
            raise Transient("still_telling", "a handler is being told of what is overruled now")
        names = self.storage.names(folder_name(kind, prediction_id))
        self.storage.remove([name for name in names if split_outcome_name(name.rpartition("/")[2])])

    def _is_untold(self, handler: Handler, kind: Kind, prediction_id: str, *, quiet: bool) -> bool:
        """Whether there is no outcome yet; that nobody was to be told is none any more unless it is `quiet`.

        An outcome file outlives every record, so that nobody is told twice when Redis was emptied.
        """
        name = object_name(kind, prediction_id, outcome_name(handler.name))
        if self.storage.head(name) is None:
            return True
        told = None if quiet else outcome_files.read(self.storage, handler.name, kind, prediction_id)
        if told is None or not told.is_passed_by:
            return False
        self.storage.remove([name])  # a rebuild would believe it
        return True

    def _acknowledge(self, manifest: Manifest) -> None:
        """Note beside the parent of a follow-up that this is it, whatever Redis remembers."""
        line = lineage(manifest.receipt.context)
        if line is None:
            return
        place = (line.handler, line.kind, line.parent)
        told = outcome_files.read(self.storage, *place)
        is_known = told is not None and told.child is not None
        if is_known or self.storage.head(manifest_name(line.kind, line.parent)) is None:
            return
        attempts = told.attempts if told else 1
        came = Told("delivered", attempts, self.clock(), None, child=manifest.prediction.id)
        outcome_files.write(self.storage, *place, came)


def counts(manifest: Manifest) -> dict[str, int]:
    """How many files are kept and lost, as records and log lines say it."""
    return {"files": len(manifest.kept), "lost": len(manifest.lost)}
