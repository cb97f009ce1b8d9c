"""What the catalog holds of one prediction: worked out from its manifest and outcomes, or from its record."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.accept.changes import Notified
from app.accept.records import Record
from app.core.handlers import Handler, interested
from app.core.lifecycle import State
from app.core.manifest import FORMAT, KeptFile, Manifest
from app.core.names import Kind
from app.core.outcomes import Told
from app.core.outputs import joined_text
from app.core.policy import keep_until
from app.core.prediction import Prediction, parse_time
from app.web import models

MOST_WORDS = 64 << 10
"""Characters of each of inputs and output that can be searched."""

SHOWN = 300
"""Characters of prompt, text and error in a list."""

PROMPTS = ("prompt", "text", "caption", "question", "query", "message")
"""Inputs that are shown first, by their names."""


@dataclass(frozen=True)
class Entry:
    """A row. `received_at` orders all of them. `inputs`, `output` and `names` are what is searched."""

    kind: Kind
    id: str
    state: State
    status: str
    source: str
    received_at: datetime
    updated_at: datetime
    model: str | None = None
    version: str | None = None
    parent: str | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None
    stored_at: datetime | None = None
    files: int = 0
    bytes: int = 0
    lost: int = 0
    picture: str | None = None
    picture_type: str | None = None
    prompt: str | None = None
    error: str | None = None
    predict_seconds: float | None = None
    inputs: str = ""
    output: str = ""
    told: Sequence[models.Told] = ()

    @property
    def ref(self) -> tuple[Kind, str]:
        """What tells it from all others."""
        return self.kind, self.id

    @property
    def expires_at(self) -> datetime | None:
        """When Replicate deletes what is not kept yet."""
        is_due = self.stored_at is None and self.state in {State.RECEIVED, State.FAILED}
        return keep_until(self.completed_at, self.received_at) if is_due else None


def of_record(record: Record) -> Entry:
    """The entry of what is not stored yet."""
    return Entry(
        kind=record.kind,
        id=record.id,
        state=record.state,
        status=record.status,
        source=record.receipt.source,
        received_at=record.received_at,
        updated_at=record.updated_at,
        model=record.model,
        parent=record.receipt.parent,
        created_at=record.created_at,
        completed_at=record.completed_at,
        files=record.files,
        lost=record.lost,
        error=record.error,
    )


def of_manifest(
    manifest: Manifest, outcomes: Mapping[str, Told], handlers: Sequence[Handler], state: State | None
) -> Entry:
    """The entry of what is stored; `state` is that of its record, None when that has expired."""
    prediction, receipt = manifest.prediction, manifest.receipt
    shown = [file for file in manifest.kept if is_shown(file.media_type) and not file.is_input]
    # The first picture; else the first film or sound.
    picture = min(shown, key=lambda file: not str(file.media_type).startswith("image/"), default=None)
    wanted = [handler.name for handler in interested(handlers, prediction) if handler.name not in outcomes]
    told = [told_of(name, outcome) for name, outcome in outcomes.items()]
    error = prediction.raw.get("error")
    return Entry(
        kind=prediction.kind,
        id=prediction.id,
        state=state or State.DISPATCHED,
        status=prediction.status,
        source=receipt.source,
        received_at=receipt.received_at,
        updated_at=manifest.stored_at,
        model=prediction.model,
        version=prediction.version,
        parent=receipt.parent,
        created_at=prediction.created_at,
        completed_at=prediction.completed_at,
        stored_at=manifest.stored_at,
        files=len(manifest.kept),
        bytes=sum(file.size or 0 for file in manifest.kept),
        lost=len(manifest.lost),
        picture=picture.name if picture else None,
        picture_type=picture.media_type if picture else None,
        prompt=prompt(prediction),
        error=error if isinstance(error, str) else json.dumps(error) if error else None,
        predict_seconds=predict_seconds(prediction),
        inputs=" \n".join(texts(prediction.raw.get("input")))[:MOST_WORDS],
        output=(joined_text(prediction.output) or "")[:MOST_WORDS],
        told=[*told, *(models.Told(handler=name, outcome="pending") for name in wanted)],
    )


def of_large_manifest(data: bytes, kind: Kind, prediction_id: str, record: Record | None) -> Entry | None:
    """The entry of a manifest that is too large to be parsed beside deliveries; None when it has no such.

    Each key stands on a line of its own: those of the object and of its output are left alone, and what
    they say is taken from the record.
    """
    found: dict[str, Any] = {}
    for line in data.split(b"\n"):
        key, _, value = line.partition(b": ")
        name = key.strip(b'"').decode(errors="replace")
        if name in {"outkeep", "files", "received_at", "stored_at", "source", "parent"}:
            found[name] = json.loads(value.rstrip(b","))
    stored_at, received_at = parse_time(found.get("stored_at")), parse_time(found.get("received_at"))
    if found.get("outkeep") != FORMAT or stored_at is None or received_at is None:
        return None
    files = [KeptFile(**file) for file in found.get("files", ())]
    kept = [file for file in files if file.error is None]
    return Entry(
        kind=kind,
        id=prediction_id,
        state=record.state if record else State.DISPATCHED,
        status=record.status if record else "unknown",
        source=found.get("source", "webhook"),
        received_at=received_at,
        updated_at=stored_at,
        model=record.model if record else None,
        parent=found.get("parent"),
        stored_at=stored_at,
        files=len(kept),
        bytes=sum(file.size or 0 for file in kept),
        lost=sum(file.error is not None and not file.is_input for file in files),
    )


def told_of(handler: str, told: Told) -> models.Told:
    """An outcome file as it is shown."""
    known = {"delivered", "dead", "off"}
    outcome = "suppressed" if told.is_passed_by else told.outcome if told.outcome in known else "dead"
    return models.Told(
        handler=handler,
        outcome=outcome,
        attempts=told.attempts,
        at=told.at,
        error=told.error,
        child=told.child,
    )


def notified(before: Sequence[models.Told], news: Notified) -> list[models.Told]:
    """What is told of an entry after one more attempt."""
    outcome = news.outcome if news.outcome in {"delivered", "dead", "off"} else "pending"
    told = models.Told(
        handler=news.handler,
        outcome=outcome,
        attempts=news.attempts,
        at=parse_time(news.at),
        error=news.error,
        child=news.child,
    )
    return [*(one for one in before if one.handler != news.handler), told]


def is_shown(media_type: str | None) -> bool:
    """Whether a browser shows or plays it; an SVG is a document of a stranger's."""
    return bool(
        media_type and media_type.startswith(("image/", "video/", "audio/")) and "svg" not in media_type
    )


def is_untold(told: models.Told) -> bool:
    """Whether a handler waits for it, or was given up."""
    return told.outcome in {"pending", "dead", "off"}


def prompt(prediction: Prediction) -> str | None:
    """The text of the input that says best what was asked for."""
    given = prediction.raw.get("input")
    if not isinstance(given, dict):
        return None
    named = [given[name] for name in PROMPTS if isinstance(given.get(name), str)]
    others = [value for value in given.values() if isinstance(value, str) and not value.startswith(_FILES)]
    return next((text for text in (*named, *others) if text), None)


_FILES = ("http://", "https://", "data:")


def texts(value: Any) -> list[str]:
    """Every text of an input that is no file, in order of appearance."""
    if isinstance(value, str):
        return [] if value.startswith(_FILES) else [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in texts(item)]


def predict_seconds(prediction: Prediction) -> float | None:
    """What Replicate bills by, where it says so."""
    metrics = prediction.raw.get("metrics")
    seconds = metrics.get("predict_time") if isinstance(metrics, dict) else None
    return float(seconds) if isinstance(seconds, int | float) and not isinstance(seconds, bool) else None
