"""What the three kinds of handlers do with an event: a webhook, a job of the user's, a follow-up prediction.

Each is read from its table of the handlers file: `mistakes` are found first, all of them, then it is made.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from app.core import notation, templates
from app.core.errors import Permanent
from app.core.hosts import is_host
from app.core.keys import SigningKey
from app.core.models import Model, parse_model
from app.core.names import HANDLE_QUEUE, NOTIFY_QUEUE, PERSIST_QUEUE

TIMEOUT: Final = 180
"""Seconds that a job of the user's may run, unless the handler says otherwise."""

MEMORY: Final = 2 << 30
LEAST_MEMORY: Final = 128 << 20
"""Bytes that a work-horse may take: unless the handler says otherwise, and at least: Python needs some."""

LONGEST: Final = 86400
_LONGEST_NAME: Final = 200

NOTIFY_TIMEOUT: Final = 60
FOLLOW_TIMEOUT: Final = 900
"""Seconds that one run of a notify job may take; files may have to be uploaded for a follow-up."""

FORMATS: Final = ("outkeep", "replicate")
"""What a webhook of a handler holds; the first one unless the handler says otherwise."""

_MODULE = r"[A-Za-z_][A-Za-z0-9_]*"
_FUNCTION = re.compile(rf"{_MODULE}(?:\.{_MODULE})+", re.ASCII)
_QUEUE = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_OURS = frozenset({"app", "workers"})


@dataclass(frozen=True)
class Webhook:
    """A signed HTTP POST. `format`: our event, or the object that Replicate itself sends."""

    url: str
    keys: tuple[SigningKey, ...] = field(repr=False)
    format: str = FORMATS[0]


@dataclass(frozen=True)
class Call:
    """An RQ job: `function` with one argument, the event. `timeout` in seconds, `memory` in bytes."""

    function: str
    queue: str = HANDLE_QUEUE
    timeout: int = TIMEOUT
    memory: int = MEMORY


@dataclass(frozen=True)
class FollowUp:
    """A prediction made from the event; `input` is a parsed template (see `app.core.templates`).

    `cancel_after` is the value of Replicate's header of that name.
    """

    model: Model
    input: Mapping[str, Any]
    cancel_after: str | None = None


Target = Webhook | Call | FollowUp
KINDS: Final[Mapping[str, frozenset[str]]] = {
    "url": frozenset({"secret", "format"}),
    "job": frozenset({"queue", "timeout", "memory"}),
    "predict": frozenset({"input", "cancel_after"}),
}
"""The key that makes a handler one of its kind → the keys that only this kind has."""


def make(entry: Mapping[str, Any], keys: tuple[SigningKey, ...]) -> Target:
    """The target of a table without mistakes."""
    if "url" in entry:
        return Webhook(entry["url"], keys, entry.get("format", FORMATS[0]))
    if "job" in entry:
        return Call(
            function=entry["job"],
            queue=entry.get("queue", HANDLE_QUEUE),
            timeout=notation.duration(str(entry["timeout"])) if "timeout" in entry else TIMEOUT,
            memory=notation.size(str(entry["memory"])) if "memory" in entry else MEMORY,
        )
    model = parse_model(entry["predict"])
    assert model is not None
    after = entry.get("cancel_after")
    return FollowUp(
        model, templates.parse(entry.get("input", {})), notation.cancel_after(str(after)) if after else None
    )


def mistakes(entry: Mapping[str, Any]) -> list[str]:
    """What is wrong with the keys that are not the same for every kind; `secret` is read elsewhere."""
    kinds = [kind for kind in KINDS if kind in entry]
    own = {key for kind in kinds for key in KINDS[kind]}
    found = []
    if not kinds:
        found.append("one of 'url', 'job' and 'predict' is missing")
    elif len(kinds) > 1:
        found.append(f"{' and '.join(map(repr, kinds))} stand together; a handler has one of them")
    elif kinds == ["url"] and "secret" not in entry:
        found.append("'secret' is missing")
    foreign = sorted(key for keys in KINDS.values() for key in keys & entry.keys() - own)
    if kinds:
        found += [f"{key!r} means nothing beside {kinds[0]!r}" for key in foreign]
    if "memory" in entry and entry.get("queue", HANDLE_QUEUE) != HANDLE_QUEUE:
        found.append("'memory' means nothing on a queue of your own: its workers set their own limits")
    found += [f"{key!r} {rule}" for key, holds, rule in _RULES if key in entry and not holds(entry[key])]
    if entry.get("job") is not None and _is_ours(entry):
        found.append("'job' names Outkeep's own code; a package named app or workers cannot run here")
    return found + _input_mistakes(entry)


def _input_mistakes(entry: Mapping[str, Any]) -> list[str]:
    if "input" not in entry:
        return []
    if not isinstance(entry["input"], dict):
        return ["'input' must be a table such as { image = \"{files[0].url}\" }"]
    found = []
    for key, value in entry["input"].items():
        try:
            templates.parse(value)
        except Permanent as error:
            found.append(f"'input' {key!r}: {error.message}")
    return found


def _is_url(value: Any) -> bool:
    # `urlsplit` drops tabs and line ends without a word, and looks at the port only when it is asked for.
    if not isinstance(value, str) or not value.isprintable() or " " in value:
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in {"http", "https"} and is_host(parts.hostname or "") and parts.port != 0
    except ValueError:
        return False


def _is_function(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_NAME and _FUNCTION.fullmatch(value) is not None


def _is_ours(entry: Mapping[str, Any]) -> bool:
    # On a queue of their own the user's workers have a path of their own.
    return (
        _is_function(entry["job"])
        and entry.get("queue", HANDLE_QUEUE) == HANDLE_QUEUE
        and entry["job"].partition(".")[0] in _OURS
    )


def _is_queue(value: Any) -> bool:
    return (
        isinstance(value, str)
        and bool(_QUEUE.fullmatch(value))
        and value not in {PERSIST_QUEUE, NOTIFY_QUEUE}
    )


def _is_timeout(value: Any) -> bool:
    return 1 <= _read(notation.duration, value) <= LONGEST


def _is_memory(value: Any) -> bool:
    return _read(notation.size, value) >= LEAST_MEMORY


def _is_cancel_after(value: Any) -> bool:
    return bool(_read(lambda text: len(notation.cancel_after(text)), value))


def _read(read: Callable[[str], int], value: Any) -> int:
    """The number behind a notation; 0 for what is none."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return 0
    try:
        return read(str(value))
    except Permanent:
        return 0


def _is_model(value: Any) -> bool:
    return isinstance(value, str) and parse_model(value) is not None


_RULES: Sequence[tuple[str, Callable[[Any], bool], str]] = (
    ("url", _is_url, "must be an http or https URL"),
    ("format", lambda value: value in FORMATS, "must be 'outkeep' or 'replicate'"),
    ("job", _is_function, "must be the dotted name of a function, such as 'myproject.tasks.make_thumbnail'"),
    ("queue", _is_queue, "must be 1 to 64 letters, digits, '_' or '-', and neither 'persist' nor 'notify'"),
    ("timeout", _is_timeout, "must be a duration of a day at most, such as '10m'"),
    ("memory", _is_memory, "must be a size of 128MiB or more, such as '1GiB'"),
    ("cancel_after", _is_cancel_after, "must be a duration of 5s to 24h, such as '10m'"),
    ("predict", _is_model, "must be 'owner/name', 'owner/name:version' or 'deployments/owner/name'"),
)
