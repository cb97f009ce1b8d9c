"""Inputs of follow-up predictions: JSON whose texts may name values of the event.

`{input.prompt}` stands for a value of the event's `data`: names with dots between, and `[n]` for an entry of
a list. `{{` and `}}` are braces. A text that is one placeholder and nothing else becomes the value, whatever
its type; elsewhere the value is written into the text. Nothing is ever called or computed.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from app.core.errors import Permanent

UNRESOLVED = "input_unresolved"
"""The code of an event that does not hold what a placeholder names."""

TEXTS = frozenset({"id", "kind", "status", "model", "version", "logs", "created_at", "completed_at"})
"""Values that have no members."""

OPEN = frozenset({"input", "output", "error", "metrics", "query", "context", "lost"})
"""Values whose members are not ours to know."""

FILES = "files"
FILE_KEYS = frozenset({"name", "url", "pointer", "source", "media_type", "size", "sha256"})

MAX_DEPTH = 20

MAX_INPUT = 64 << 20
"""Bytes, as JSON, of all the values in an input."""

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+|\[[0-9]{1,6}\])*", re.ASCII)
_STEP = re.compile(r"\.?([A-Za-z0-9_-]+)|\[([0-9]+)\]", re.ASCII)

Path = tuple[str | int, ...]
Piece = str | Path
"""Of a text: what stands as it is, or a placeholder."""


@dataclass(frozen=True)
class Text:
    """A text with placeholders, in order of appearance."""

    pieces: tuple[Piece, ...]


def parse(template: Any) -> Any:
    """The template with each text that holds placeholders turned into a `Text`.

    Raises `Permanent` (`bad_template`) for what can never resolve; the message names the placeholder.
    """
    return _parse(template, 0)


def render(template: Any, data: Mapping[str, Any]) -> Any:
    """The input that a parsed template makes of the `data` of an event.

    Raises `Permanent`: `input_unresolved` when the event does not hold what a placeholder names,
    `input_too_large` when the values come to more than `MAX_INPUT` bytes: each may be named many times.
    """
    sizes: dict[Path, int] = {}
    total = 0
    for path in placeholders(template):
        if path not in sizes:
            sizes[path] = len(json.dumps(_look_up(path, data)))
        total += sizes[path]
        if total > MAX_INPUT:
            raise Permanent("input_too_large", f"the input would have more than {MAX_INPUT >> 20} MiB")
    return _rendered(template, data)


def _rendered(template: Any, data: Mapping[str, Any]) -> Any:
    match template:
        case Text():
            return _text(template, data)
        case dict():
            return {key: _rendered(value, data) for key, value in template.items()}
        case list():
            return [_rendered(value, data) for value in template]
        case _:
            return template


def files_used(template: Any, count: int) -> set[int]:
    """Which of the `count` files of an event the template gives to the model, by their place in `files`."""
    return {number for number, rest in _files(template, count) if rest in {(), ("url",)}}


def files_named(template: Any, count: int) -> set[int]:
    """Which of the `count` files the template says anything of."""
    return {number for number, _ in _files(template, count)}


def _files(template: Any, count: int) -> Iterator[tuple[int, Path]]:
    """The files that placeholders name, each with the rest of its path."""
    for path in placeholders(template):
        if path == (FILES,):
            yield from ((number, ()) for number in range(count))
        elif path[0] == FILES and isinstance(path[1], int) and path[1] < count:
            yield path[1], path[2:]


def looks_into(template: Any, root: str) -> bool:
    """Whether the template names a member of `root`, and not only the whole of it."""
    return any(path[0] == root and len(path) > 1 for path in placeholders(template))


def placeholders(template: Any) -> Iterator[Path]:
    """All placeholders of a parsed template."""
    match template:
        case Text():
            yield from (piece for piece in template.pieces if not isinstance(piece, str))
        case dict():
            for value in template.values():
                yield from placeholders(value)
        case list():
            for value in template:
                yield from placeholders(value)


def _parse(template: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise Permanent("bad_template", f"it nests deeper than {MAX_DEPTH} levels")
    match template:
        case str():
            return _parse_text(template)
        case dict():
            return {key: _parse(value, depth + 1) for key, value in template.items()}
        case list():
            return [_parse(value, depth + 1) for value in template]
        case None | bool() | int():
            return template
        case float() if template - template == 0:  # JSON knows neither infinity nor NaN
            return template
        case _:
            raise Permanent("bad_template", f"JSON has no {type(template).__name__} such as {template}")


def _parse_text(text: str) -> Any:
    pieces: list[Piece] = []
    at = 0
    for token in _TOKEN.finditer(text):
        pieces.append(text[at : token.start()])
        at = token.end()
        if token[0] in {"{{", "}}"}:
            pieces.append(token[0][0])
        elif token[1] is None:
            raise Permanent(
                "bad_template", f"{text[:100]!r} has a brace without its partner; write {{{{ or }}}}"
            )
        else:
            pieces.append(_path(token[1]))
    kept = tuple(piece for piece in (*pieces, text[at:]) if piece)
    if all(isinstance(piece, str) for piece in kept):
        return "".join(map(str, kept))
    return Text(kept)


def _path(text: str) -> Path:
    """The steps of a placeholder; raises `Permanent` for one that no event could resolve."""
    shown = f"{{{text[:100]}}}"
    if not _PATH.fullmatch(text):
        raise Permanent(
            "bad_template", f"{shown} is no placeholder: write names with dots between, and [0] for an entry"
        )
    path: Path = tuple(
        name if name else int(number) for name, number in (step.groups() for step in _STEP.finditer(text))
    )
    root, *rest = path
    if root not in TEXTS | OPEN | {FILES}:
        known = ", ".join(sorted(TEXTS | OPEN | {FILES}))
        raise Permanent("bad_template", f"{shown} names nothing of an event, which has {known}")
    if root in TEXTS and rest:
        raise Permanent("bad_template", f"{shown}: {root} is a text and has no members")
    if root == FILES and rest:
        _require_file(rest, shown)
    return path


def _require_file(rest: list[str | int], shown: str) -> None:
    number, *key = rest
    if not isinstance(number, int):
        raise Permanent("bad_template", f"{shown}: files is a list; write files[0]")
    if key and (len(key) > 1 or key[0] not in FILE_KEYS):
        raise Permanent("bad_template", f"{shown}: a file has {', '.join(sorted(FILE_KEYS))}")


def _text(text: Text, data: Mapping[str, Any]) -> Any:
    values = [piece if isinstance(piece, str) else _look_up(piece, data) for piece in text.pieces]
    if len(values) == 1:
        return values[0]
    return "".join(
        piece if isinstance(piece, str) else _written(value, piece)
        for piece, value in zip(text.pieces, values, strict=True)
    )


def _look_up(path: Path, data: Mapping[str, Any]) -> Any:
    value: Any = data
    for step in path:
        if isinstance(step, int) and isinstance(value, list) and step < len(value):
            value = value[step]
        elif isinstance(value, dict) and str(step) in value:
            value = value[str(step)]
        else:
            raise Permanent(UNRESOLVED, f"the event has no {spell(path)}")
    return value


def _written(value: Any, path: Path) -> str:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case list() if all(isinstance(item, str) for item in value):
            return "".join(value)  # text that streams comes as a list of tokens
        case _:
            name = "null" if value is None else type(value).__name__
            raise Permanent(UNRESOLVED, f"{spell(path)} is {name} in the event, and cannot be part of a text")


def spell(path: Path) -> str:
    """A placeholder as it is written."""
    first, *rest = path
    return f"{{{first}{''.join(f'[{step}]' if isinstance(step, int) else f'.{step}' for step in rest)}}}"
