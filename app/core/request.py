"""What people write to create a prediction: the model, the input, the context."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from app.core.context import RESERVED, require_short
from app.core.errors import Permanent

_OWNER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
_MODEL = re.compile(rf"(?P<name>{_OWNER_NAME})(?::(?P<version>[A-Za-z0-9-]{{1,128}}))?", re.ASCII)
_DEPLOYMENT = re.compile(rf"deployments/(?P<name>{_OWNER_NAME})", re.ASCII)
_VERSION = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LONGEST = 300


@dataclass(frozen=True)
class Model:
    """`name` is `owner/name`, of a model or of a deployment; a deployment chooses its version itself.

    It is empty where only a version is named.
    """

    name: str
    version: str | None = None
    is_deployment: bool = False

    def __str__(self) -> str:
        prefix = "deployments/" if self.is_deployment else ""
        return f"{prefix}{self.name}{f':{self.version}' if self.version else ''}"


def parse_model(text: str) -> Model | None:
    """`owner/name`, `owner/name:version` or `deployments/owner/name`; None for anything else."""
    if len(text) > _LONGEST:
        return None
    if found := _DEPLOYMENT.fullmatch(text):
        return Model(found["name"], is_deployment=True)
    found = _MODEL.fullmatch(text)
    return Model(found["name"], found["version"]) if found else None


def parse_runnable(text: str) -> Model | None:
    """What `parse_model` reads, or the id of a version alone; None for anything else."""
    return Model("", text) if _VERSION.fullmatch(text) else parse_model(text)


_PAIR = re.compile(r"(?P<key>[^=]+?)(?P<more>\[\])?=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True)
class LocalFile:
    """A value of an input that is to be uploaded first."""

    path: str


def parse_input(pairs: Iterable[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The input that `key=value` pairs describe, over what is `given` already.

    A value that is a JSON number, true, false, an array or an object is that; `@path` is a file; all else is
    text. `key[]=value` adds to a list. Raises `Permanent` (`bad_input`).
    """
    result, single, lists = dict(given), set[str](), dict[str, list[Any]]()
    for pair in pairs:
        found = _PAIR.fullmatch(pair)
        if found is None:
            raise Permanent("bad_input", f"{pair!r} is not key=value")
        key, value = found["key"], _value(found["value"])
        if key in single or (not found["more"] and key in result and key not in given):
            raise Permanent("bad_input", f"{key} is given twice; write {key}[]=… to make a list")
        if found["more"]:
            if key not in lists:
                before = result.get(key, [])
                result[key] = lists[key] = list(before) if isinstance(before, list) else [before]
            lists[key].append(value)
        else:
            single.add(key)
            result[key] = value
    if not _is_json(result):
        raise Permanent("bad_input", "it holds a number or a text that JSON cannot hold: is it UTF-8?")
    return result


def parse_context(pairs: Iterable[str]) -> dict[str, str]:
    """The context that `key=value` pairs describe, all of it text.

    Raises `Permanent` (`bad_context`, `context_too_large`).
    """
    context: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise Permanent("bad_context", f"{pair!r} is not key=value")
        if key == RESERVED:
            raise Permanent("bad_context", f"{RESERVED} is a name of ours; take another one")
        if key in context:
            raise Permanent("bad_context", f"{key} is given twice")
        context[key] = value
    if not _is_json(context):
        raise Permanent("bad_context", "it holds a text that JSON cannot hold: is it UTF-8?")
    require_short(context)
    return context


def local_files(value: Any) -> Iterator[LocalFile]:
    """Every file that an input needs uploaded, in order of appearance."""
    if isinstance(value, LocalFile):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from local_files(item)
    elif isinstance(value, list):
        for item in value:
            yield from local_files(item)


def with_urls(value: Any, urls: Mapping[LocalFile, str]) -> Any:
    """A copy of an input in which each file is the URL that it was uploaded to."""
    if isinstance(value, LocalFile):
        return urls[value]
    if isinstance(value, Mapping):
        return {key: with_urls(item, urls) for key, item in value.items()}
    return [with_urls(item, urls) for item in value] if isinstance(value, list) else value


def _value(text: str) -> Any:
    if text.startswith("@"):
        return LocalFile(text[1:])
    try:
        value = json.loads(text, parse_constant=_refuse)
        # A prompt in quotes, or the word null, is meant as it stands.
        return text if value is None or isinstance(value, str) else value
    except (ValueError, RecursionError):
        return text


def _is_json(value: Any) -> bool:
    """Whether a value can be sent as JSON in UTF-8; Python reads more than that."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False, default=lambda _file: None).encode()
    except ValueError:  # of which UnicodeEncodeError is one
        return False
    return True


def _refuse(word: str) -> None:
    raise ValueError(word)
