"""Predictions and trainings as Replicate sends them: parsed once, every key kept.

Only `id` and `status` are needed. Everything else can be missing or odd in recordings, so it is read
through properties that answer None instead of refusing what we could have kept.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from app.core.errors import Unusable
from app.core.names import ID, Kind

TERMINAL = frozenset({"succeeded", "failed", "canceled", "aborted"})
"""Statuses after which Replicate changes nothing more (its OpenAPI document, 2026-03-16)."""

RUNNING_ORDER = {"starting": 0, "processing": 1}
MAX_DEPTH = 100
"""Levels of nesting we accept; the deepest recorded output has four."""
MAX_STATUS = 64
"""Characters of a status: it becomes part of event types and log lines."""

HEAVIEST = 256 << 20
"""About how many bytes of memory the values of a body may take once it is parsed: empty objects take many
times as much as in the body."""

_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2})",
    re.ASCII,
)


@dataclass(frozen=True)
class Prediction:
    """One prediction or training; `raw` is the JSON object as received."""

    kind: Kind
    id: str
    status: str
    raw: dict[str, Any]

    @property
    def output(self) -> Any:
        """Any JSON; None until produced."""
        return self.raw.get("output")

    @property
    def model(self) -> str | None:
        """`owner/name`, when it was sent."""
        return self._text("model")

    @property
    def version(self) -> str | None:
        """64 hex digits, `hidden`, or a deployment's word."""
        return self._text("version")

    @property
    def logs(self) -> str:
        """Logs so far; empty when there are none."""
        return self._text("logs") or ""

    @property
    def created_at(self) -> datetime | None:
        """When it was created, by Replicate's clock, in UTC."""
        return parse_time(self.raw.get("created_at"))

    @property
    def completed_at(self) -> datetime | None:
        """When it ended, by Replicate's clock, in UTC."""
        return parse_time(self.raw.get("completed_at"))

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more will come; an unknown status counts when it has a completion time."""
        if self.status in TERMINAL:
            return True
        return self.status not in RUNNING_ORDER and bool(self.raw.get("completed_at"))

    @property
    def output_was_removed(self) -> bool:
        """Whether it succeeded and Replicate has removed what it produced, if that was anything.

        Of other ends nobody expects an output; what a canceled one may have shown so far cannot be told.
        """
        return self.status == "succeeded" and self.output is None and self.raw.get("data_removed") is True

    @property
    def progress_rank(self) -> str:
        """Orders snapshots of one running prediction: compare as text, the larger one is newer.

        Snapshots only grow, while deliveries of the same second arrive in any order; so what has been
        produced so far orders them better than any clock.
        """
        output = self.output
        produced = len(output) if isinstance(output, str | list) else int(output is not None)
        return f"{RUNNING_ORDER.get(self.status, 1)}:{produced:012d}:{len(self.logs):012d}"

    def _text(self, key: str) -> str | None:
        value = self.raw.get(key)
        return value if isinstance(value, str) else None


def parse(body: bytes, kind: Kind) -> Prediction:
    """Read a webhook body (JSON object in UTF-8).

    Raises:
        Unusable: not JSON as RFC 8259 has it, not an object, too deep, or without a usable id and status.
    """
    return from_object(_load(body), kind)


def from_object(value: Any, kind: Kind) -> Prediction:
    """Take an already parsed JSON value; raises `Unusable` like `parse`."""
    if not isinstance(value, dict):
        raise Unusable("not_an_object", "the body is JSON but not an object")
    if _too_deep(value):
        raise Unusable("too_deep", f"the body nests deeper than {MAX_DEPTH} levels")
    prediction_id, status = value.get("id"), value.get("status")
    if not isinstance(prediction_id, str) or not ID.fullmatch(prediction_id):
        raise Unusable("bad_id", "the body has no id of 1 to 64 letters, digits, '_' or '-'")
    if not isinstance(status, str) or not 0 < len(status) <= MAX_STATUS or not status.isprintable():
        raise Unusable("bad_status", f"the body has no status of 1 to {MAX_STATUS} printable characters")
    return Prediction(kind=kind, id=prediction_id, status=status, raw=value)


def is_progress(body: bytes) -> bool:
    """Whether a body that `parse` refuses plainly speaks of a prediction that still runs."""
    try:
        value = _load(body)
    except Unusable:
        return False
    status = value.get("status") if isinstance(value, dict) else None
    return isinstance(status, str) and status in RUNNING_ORDER


def parse_time(value: Any) -> datetime | None:
    """An RFC 3339 time with 0 to 9 fraction digits as UTC, cut to microseconds; None for anything else."""
    if not isinstance(value, str) or not _TIME.fullmatch(value.upper()):
        return None
    try:
        time = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):  # the 30th of February; an offset that leads out of the calendar
        return None
    return time if time.year > 1 else None  # Go writes year 1 for a time that was never set


def _load(body: bytes) -> Any:
    if is_heavy(body):
        raise Unusable("too_many_values", f"the body holds more values than fit into {HEAVIEST >> 20} MiB")
    try:
        value = _DECODER.decode(body.decode("utf-8"))
        if _SURROGATE.search(body):
            # Python reads one that stands alone, and trips only over writing it to the manifest.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        raise Unusable("not_utf8", "the body is not UTF-8") from None
    except UnicodeEncodeError:
        raise Unusable("lone_surrogate", "the body contains a lone surrogate") from None
    except RecursionError:
        raise Unusable("too_deep", f"the body nests deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise Unusable("not_json", f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:
        raise Unusable("bad_number", "the body holds a number that no JSON of ours could hold") from None
    return value


def is_heavy(body: bytes) -> bool:
    """Whether its values take more memory than we give to one body; texts are about as large as they look."""
    at_most = sum(weight * body.count(sign) for sign, weight in _WEIGHTS.items())
    if at_most <= HEAVIEST:
        return False
    weight = 0  # now without the signs in texts
    for token in _TOKEN.finditer(body):
        weight += _WEIGHTS.get(token[0], 0)
        if weight > HEAVIEST:
            return True
    return False


def _finite(text: str) -> float:
    """Python reads NaN and 1e999, and trips only over writing them."""
    number = float(text)
    if not isfinite(number):
        raise ValueError(text)
    return number


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
_WEIGHTS = {b",": 80, b"{": 200, b"[": 200}
"""About how many bytes what begins with it takes, once it is parsed."""
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[,{\[]', re.DOTALL)
"""A text that does not end goes on to the end: to look for another one in it would take for ever."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
