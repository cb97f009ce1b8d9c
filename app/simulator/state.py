"""The life of a prediction or training object: pure moves from one JSON object to the next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from app.core.errors import Rejected
from app.core.names import Kind
from app.core.prediction import TERMINAL

Object = dict[str, Any]

MOVES: Mapping[str, frozenset[str]] = {
    "starting": frozenset({"processing", "canceled", "aborted"}),
    "processing": frozenset({"processing", "succeeded", "failed", "canceled"}),
}
"""Every legal move; a terminal status has none."""

EVENTS = ("start", "output", "logs", "completed")
"""What `webhook_events_filter` may hold."""


@dataclass(frozen=True, slots=True)
class Order:
    """A creation request that was understood. `events` None means no filter was given."""

    kind: Kind
    model: str
    version: str
    input: Object
    destination: str | None = None
    webhook: str | None = None
    events: tuple[str, ...] | None = None
    cancel_after: int | None = None
    """Seconds from the creation after which it is canceled, or aborted if it has not started."""
    streams: bool = False
    """Whether the output was asked for as a stream, too."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What a list is asked for: `created_after` inclusive, `created_before` exclusive."""

    created_after: datetime | None = None
    created_before: datetime | None = None
    source: str | None = None


def stamp(moment: datetime) -> str:
    """A time as the API writes it: RFC 3339, UTC, `Z`, microseconds."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def moment(text: str) -> datetime:
    """The reverse of `stamp`; 0 to 9 fraction digits. Raises `ValueError`."""
    value = datetime.fromisoformat(text)
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def created(order: Order, *, identity: str, now: datetime, base_url: str) -> Object:
    """A new object, `starting`, with exactly the keys of real ones."""
    own = f"{base_url}/v1/{order.kind.folder}/{identity}"
    fresh: Object = {
        "completed_at": None,
        "created_at": stamp(now),
        "data_removed": False,
        "error": None,
        "id": identity,
        "input": order.input,
        "logs": "",
        "metrics": {},
        "model": order.model,
        "output": None,
        "started_at": None,
        "status": "starting",
        "urls": {"cancel": f"{own}/cancel", "get": own, "web": f"{base_url}/p/{identity}"},
        "version": order.version,
    }
    if order.streams:
        fresh["urls"]["stream"] = f"{base_url}/v1/streams/{identity}"
    if order.cancel_after is not None:
        fresh["deadline"] = stamp(now + timedelta(seconds=order.cancel_after))
    if order.webhook is not None:
        fresh["webhook"] = order.webhook
    if order.events is not None:
        fresh["webhook_events_filter"] = list(order.events)
    return fresh


def _moved(current: Object, status: str, **changes: Any) -> Object:
    if status not in MOVES.get(current["status"], frozenset()):
        raise ValueError(f"a prediction cannot move from {current['status']} to {status}")
    return {**current, "status": status, **changes}


def started(current: Object, now: datetime) -> Object:
    """The model begins."""
    return _moved(current, "processing", started_at=stamp(now))


def progressed(current: Object, *, output: Any, logs: str) -> Object:
    """A running model shows more."""
    return _moved(current, "processing", output=output, logs=logs)


def ended(current: Object, status: str, now: datetime, *, error: str | None = None) -> Object:
    """The end; `metrics.predict_time` is what passed since the start, in seconds."""
    changes: Object = {"completed_at": stamp(now), "error": error}
    if current["started_at"] is not None:
        passed = (now - moment(current["started_at"])).total_seconds()
        changes["metrics"] = {"predict_time": passed}
    return _moved(current, status, **changes)


def removed(current: Object) -> Object:
    """What is left once the data was removed: the status stays."""
    return {**current, "data_removed": True, "input": {}, "logs": None, "output": None}


def is_terminal(current: Mapping[str, Any]) -> bool:
    """Whether nothing more will happen to this object."""
    return current.get("status") in TERMINAL


def changed_event(before: Object, after: Object, wanted: Sequence[str]) -> str | None:
    """The event of a step, or None when the subscriber did not ask for what changed."""
    changed = (name for name in ("output", "logs") if before[name] != after[name])
    return next((name for name in changed if name in wanted), None)


def matches(current: Object, wanted: Filter) -> bool:
    """Whether a list with this filter shows the object."""
    at = moment(current["created_at"])
    if wanted.created_after is not None and at < wanted.created_after:
        return False
    if wanted.created_before is not None and at >= wanted.created_before:
        return False
    return wanted.source is None or current.get("source", "api") == wanted.source


def shown(current: Object, *, reticent: bool) -> Object:
    """A single object as the API shows it; a reticent one does not name its webhook, as in recordings."""
    hidden = {"webhook", "webhook_events_filter", "source"} if reticent else {"source"}
    return {key: value for key, value in current.items() if key not in hidden}


def list_item(current: Object, *, reticent: bool) -> Object:
    """The object as lists show it: without `logs`, with `source`; a reticent list lacks `model`, too."""
    hidden = {"logs", "model"} if reticent else {"logs"}
    rest = {key: value for key, value in shown(current, reticent=reticent).items() if key not in hidden}
    return {**rest, "source": current.get("source", "api")}


def page(objects: Sequence[Object], cursor: str | None, size: int) -> tuple[list[Object], str | None]:
    """One page of `objects` (newest first) after the id `cursor`, and the cursor of the next page.

    Raises `Rejected` (400) for a cursor that names none of them.
    """
    first = 0
    if cursor is not None:
        ids = [item["id"] for item in objects]
        if cursor not in ids:
            raise Rejected("cursor", "The cursor is not valid.", status=400)
        first = ids.index(cursor) + 1
    results = list(objects[first : first + size])
    more = len(objects) > first + size
    return results, results[-1]["id"] if more else None
