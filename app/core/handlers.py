"""The handlers file: who wants which events, and how to tell them."""

import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from app.core import targets
from app.core.errors import ConfigurationError, Permanent
from app.core.keys import SigningKey, parse_signing_keys
from app.core.names import ID, Kind
from app.core.prediction import TERMINAL, Prediction
from app.core.targets import Call, FollowUp, Target

ReadSecret = Callable[[str], str]
"""Resolves `env:NAME`, `file:PATH` or a literal to the secret's text; raises `Permanent` when it cannot."""

_KEYS = frozenset({"name", "on", "model", "kind"}).union(targets.KINDS, *targets.KINDS.values())


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
        return targets.FOLLOW_TIMEOUT if isinstance(self.target, FollowUp) else targets.NOTIFY_TIMEOUT

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
        problems += [f"{_label(entry, number)}: {mistake}" for mistake in mistakes]
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


def _label(entry: Mapping[str, Any], number: int) -> str:
    name = entry.get("name")
    return f"handler {name!r}" if _is_name(name) else f"handler number {number}"


def _handler(entry: Mapping[str, Any], keys: tuple[SigningKey, ...]) -> Handler:
    return Handler(
        name=entry["name"],
        target=targets.make(entry, keys),
        on=frozenset(entry["on"]) if "on" in entry else None,
        model=entry.get("model"),
        kind=Kind(entry["kind"]) if "kind" in entry else None,
    )


def _mistakes(entry: Mapping[str, Any]) -> list[str]:
    found = [f"unknown key {key!r}" for key in sorted(entry.keys() - _KEYS)]
    if "name" not in entry:
        found.append("'name' is missing")
    found += [f"{key!r} {rule}" for key, holds, rule in _RULES if key in entry and not holds(entry[key])]
    return found + targets.mistakes(entry)


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


def _is_kind(value: Any) -> bool:
    return value in list(Kind)


_RULES: Sequence[tuple[str, Callable[[Any], bool], str]] = (
    ("name", _is_name, "must be 1 to 64 letters, digits, '_' or '-'"),
    ("on", _is_statuses, f"must be a list of statuses: {', '.join(sorted(TERMINAL))}"),
    ("model", _is_text, "must be a glob such as 'owner/*'"),
    ("kind", _is_kind, "must be 'prediction' or 'training'"),
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
