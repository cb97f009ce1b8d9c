"""The handlers file: who wants which events, and how to tell them."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from app.core.errors import ConfigurationError, Permanent
from app.core.names import ID, Kind
from app.core.prediction import TERMINAL, Prediction
from app.core.keys import SigningKey, parse_signing_keys

ReadSecret = Callable[[str], str]
"""Resolves `env:NAME`, `file:PATH` or a literal to the secret's text; raises `Permanent` when it cannot."""

_KEYS = frozenset({"name", "on", "model", "kind", "url", "secret"})
_LATER = frozenset({"job", "queue", "predict", "input"})


@dataclass(frozen=True)
class Handler:
    """One downstream that is told by signed HTTP POST."""

    name: str
    url: str
    keys: tuple[SigningKey, ...]
    on: frozenset[str] | None = None
    """Statuses it wants; None: every terminal one."""
    model: str | None = None
    """A glob over `owner/name`."""
    kind: Kind | None = None

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
        ConfigurationError: with one line for each mistake, all of them.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError([f"not TOML: {error}"]) from None
    problems = [
        f"unknown table or key {key!r}; only [[handler]] is known" for key in document.keys() - {"handler"}
    ]
    entries = document.get("handler", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigurationError([*problems, "'handler' must be written as [[handler]] tables"])
    handlers = []
    for number, entry in enumerate(entries, 1):
        mistakes = _mistakes(entry)
        keys: tuple[SigningKey, ...] = ()
        if "secret" in entry:
            keys, unreadable = _signing_keys(entry["secret"], read_secret)
            mistakes += unreadable
        problems += [f"{_label(entry, number)}: {mistake}" for mistake in mistakes]
        if not mistakes:
            handlers.append(_handler(entry, keys))
    names = [handler.name for handler in handlers]
    problems += [f"two handlers are named {name!r}" for name in sorted(set(names)) if names.count(name) > 1]
    if problems:
        raise ConfigurationError(problems)
    return tuple(handlers)


def interested(handlers: Sequence[Handler], prediction: Prediction) -> list[Handler]:
    """The handlers that are told about a prediction, in the order of the file."""
    return [handler for handler in handlers if handler.wants(prediction)]


def _label(entry: Mapping[str, Any], number: int) -> str:
    name = entry.get("name")
    return f"handler {name!r}" if isinstance(name, str) else f"handler number {number}"


def _handler(entry: Mapping[str, Any], keys: tuple[SigningKey, ...]) -> Handler:
    return Handler(
        name=entry["name"],
        url=entry["url"],
        keys=keys,
        on=frozenset(entry["on"]) if "on" in entry else None,
        model=entry.get("model"),
        kind=Kind(entry["kind"]) if "kind" in entry else None,
    )


def _mistakes(entry: Mapping[str, Any]) -> list[str]:
    found = [f"unknown key {key!r}" for key in sorted(entry.keys() - _KEYS - _LATER)]
    found += [f"key {key!r} is not supported by this version" for key in sorted(entry.keys() & _LATER)]
    checks: list[tuple[str, Callable[[Any], bool], str]] = [
        ("name", _is_name, "must be 1 to 64 letters, digits, '_' or '-'"),
        ("url", _is_url, "must be an http or https URL"),
    ]
    found += [f"{key!r} is missing" for key in ("name", "url", "secret") if key not in entry]
    checks += [
        ("on", _is_statuses, f"must be a list of statuses: {', '.join(sorted(TERMINAL))}"),
        ("model", lambda value: isinstance(value, str) and bool(value), "must be a glob such as 'owner/*'"),
        ("kind", lambda value: value in list(Kind), "must be 'prediction' or 'training'"),
    ]
    return found + [
        f"{key!r} {rule}" for key, holds, rule in checks if key in entry and not holds(entry[key])
    ]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and ID.fullmatch(value) is not None


def _is_url(value: Any) -> bool:
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        return parts is not None and parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        return False


def _is_statuses(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, str) and item in TERMINAL for item in value)
    )


def _signing_keys(value: Any, read_secret: ReadSecret) -> tuple[tuple[SigningKey, ...], list[str]]:
    references = value if isinstance(value, list) else [value]
    keys: list[SigningKey] = []
    problems = []
    for reference in references or [""]:
        if not isinstance(reference, str):
            problems.append("'secret' must be text or a list of texts")
            continue
        try:
            keys += parse_signing_keys(read_secret(reference))
        except Permanent as error:
            problems.append(f"'secret': {error.message}")
    return tuple(keys), problems
