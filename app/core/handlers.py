"""The handlers file: who is told of what, by a webhook, a function of the user's or a follow-up prediction.

Each is read from its table of the handlers file: `mistakes` are found first, all of them, then it is made.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final
from urllib.parse import urlsplit

from app.core import notation, templates
from app.core.errors import ConfigurationError, Permanent
from app.core.hosts import is_host
from app.core.names import HANDLE_QUEUE, ID, NOTIFY_QUEUE, PERSIST_QUEUE, Kind
from app.core.prediction import TERMINAL, Prediction
from app.core.request import Model, parse_model
from app.core.signature import SigningKey, parse_signing_keys

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
    found += [f"{key!r} {rule}" for key, holds, rule in _KEY_RULES if key in entry and not holds(entry[key])]
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


_KEY_RULES: Sequence[tuple[str, Callable[[Any], bool], str]] = (
    ("url", _is_url, "must be an http or https URL"),
    ("format", lambda value: value in FORMATS, "must be 'outkeep' or 'replicate'"),
    ("job", _is_function, "must be the dotted name of a function, such as 'myproject.tasks.make_thumbnail'"),
    ("queue", _is_queue, "must be 1 to 64 letters, digits, '_' or '-', and neither 'persist' nor 'notify'"),
    ("timeout", _is_timeout, "must be a duration of a day at most, such as '10m'"),
    ("memory", _is_memory, "must be a size of 128MiB or more, such as '1GiB'"),
    ("cancel_after", _is_cancel_after, "must be a duration of 5s to 24h, such as '10m'"),
    ("predict", _is_model, "must be 'owner/name', 'owner/name:version' or 'deployments/owner/name'"),
)

ReadSecret = Callable[[str], str]
"""Resolves `env:NAME`, `file:PATH` or a literal to the secret's text; raises `Permanent` when it cannot."""

_KEYS = frozenset({"name", "on", "model", "kind"}).union(KINDS, *KINDS.values())


@dataclass(frozen=True)
class Handler:
    """One downstream: which events it wants, and what is done with them."""

    name: str
    target: Target
    on: frozenset[str] | None = None
    """Statuses it wants; None: every terminal one."""
    model: str | None = None
    """A glob over `owner/name`."""
    kind: Kind | None = None

    @property
    def patience(self) -> int:
        """Seconds that one run of its notify job may take."""
        return FOLLOW_TIMEOUT if isinstance(self.target, FollowUp) else NOTIFY_TIMEOUT

    def wants(self, prediction: Prediction) -> bool:
        """Whether this handler is told about a prediction that ended."""
        if self.kind is not None and prediction.kind is not self.kind:
            return False
        if self.on is not None and prediction.status not in self.on:
            return False
        return self.model is None or fnmatchcase(prediction.model or "", self.model)


def parse(text: str, read_secret: ReadSecret) -> tuple[Handler, ...]:
    """Read the TOML of a handlers file.

    Raises:
        ConfigurationError: with one line for each mistake, all of them; no line shows a secret.
    """
    document = _toml(text)
    problems = [
        f"unknown table or key {key!r}; only [[handler]] is known"
        for key in sorted(document.keys() - {"handler"})
    ]
    entries = document.get("handler", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigurationError([*problems, "'handler' must be written as [[handler]] tables"])
    handlers = []
    for number, entry in enumerate(entries, 1):
        keys, unreadable = _signing_keys(entry.get("secret"), read_secret)
        mistakes = _mistakes(entry) + unreadable
        name = entry.get("name")
        label = f"handler {name!r}" if _is_name(name) else f"handler number {number}"
        problems += [f"{label}: {mistake}" for mistake in mistakes]
        if not mistakes:
            handlers.append(_handler(entry, keys))
    names = Counter(entry["name"] for entry in entries if _is_name(entry.get("name")))
    problems += [f"{count} handlers are named {name!r}" for name, count in names.items() if count > 1]
    if problems:
        raise ConfigurationError(problems)
    return tuple(handlers)


def interested(handlers: Sequence[Handler], prediction: Prediction) -> list[Handler]:
    """The handlers that are told about a prediction, in the order of the file."""
    return [handler for handler in handlers if handler.wants(prediction)]


def job_queues(handlers: Sequence[Handler]) -> tuple[str, ...]:
    """The queues that hold jobs of the user's, in order."""
    return tuple(sorted({call.queue for call in calls(handlers)}))


def calls(handlers: Sequence[Handler]) -> list[Call]:
    """The jobs of the user's that the handlers name."""
    return [handler.target for handler in handlers if isinstance(handler.target, Call)]


def needs_token(handlers: Sequence[Handler]) -> list[str]:
    """The names of the handlers that call Replicate's API."""
    return [handler.name for handler in handlers if isinstance(handler.target, FollowUp)]


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:  # also for a number of 5,000 digits
        raise ConfigurationError([f"not TOML: {error}"]) from None
    except RecursionError:
        raise ConfigurationError(["not TOML that can be read: it nests too deep"]) from None


def _handler(entry: Mapping[str, Any], keys: tuple[SigningKey, ...]) -> Handler:
    return Handler(
        name=entry["name"],
        target=make(entry, keys),
        on=frozenset(entry["on"]) if "on" in entry else None,
        model=entry.get("model"),
        kind=Kind(entry["kind"]) if "kind" in entry else None,
    )


def _mistakes(entry: Mapping[str, Any]) -> list[str]:
    found = [f"unknown key {key!r}" for key in sorted(entry.keys() - _KEYS)]
    if "name" not in entry:
        found.append("'name' is missing")
    found += [f"{key!r} {rule}" for key, holds, rule in _RULES if key in entry and not holds(entry[key])]
    return found + mistakes(entry)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and ID.fullmatch(value) is not None


def _is_statuses(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, str) and item in TERMINAL for item in value)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


_RULES: Sequence[tuple[str, Callable[[Any], bool], str]] = (
    ("name", _is_name, "must be 1 to 64 letters, digits, '_' or '-'"),
    ("on", _is_statuses, f"must be a list of statuses: {', '.join(sorted(TERMINAL))}"),
    ("model", _is_text, "must be a glob such as 'owner/*'"),
    ("kind", list(Kind).__contains__, "must be 'prediction' or 'training'"),
)


def _signing_keys(value: Any, read_secret: ReadSecret) -> tuple[tuple[SigningKey, ...], list[str]]:
    """The keys behind `secret`, and what is wrong with it; a missing one is told elsewhere."""
    if value is None:
        return (), []
    references = value if isinstance(value, list) else [value]
    if not references or not all(isinstance(reference, str) for reference in references):
        return (), ["'secret' must be text or a list of texts"]
    keys: list[SigningKey] = []
    problems = []
    for number, reference in enumerate(references, 1):
        place = f" number {number}" if len(references) > 1 else ""
        try:
            keys += parse_signing_keys(read_secret(reference))
        except Permanent as error:
            problems.append(f"'secret'{place}: {error.message}")
    return tuple(keys), problems
