"""What of a large event is needed to fetch its outputs, while no storage takes the event itself."""

import json
from collections.abc import Mapping
from typing import Any

from app.core.outputs import OutputFile, find_files, is_file

KEYS = ("id", "status", "model", "version", "created_at", "completed_at")
"""What stays as it is; input and logs, which make most events large, are left out."""

_INLINE = "data:;base64,"
"""Stands for a file that comes with the event: so the others keep their numbers."""


def outline(raw: Mapping[str, Any], *, limit: int) -> bytes | None:
    """A terminal object without its input, logs, text and inline files, as JSON of `limit` bytes at most.

    None when that is not possible, or there is nothing to fetch.
    """
    output = _outlined(raw.get("output"))
    if all(file.is_inline for file in find_files(output)):
        return None
    short = {key: raw[key] for key in KEYS if key in raw} | {"output": output}
    body = json.dumps(short).encode()
    return body if len(body) <= limit else None


def _outlined(value: Any) -> Any:
    if isinstance(value, str):
        if not is_file(value):
            return ""
        return _INLINE if OutputFile("", value).is_inline else value
    if isinstance(value, list):
        return [_outlined(item) for item in value]
    if isinstance(value, dict):
        return {key: _outlined(item) for key, item in value.items()}
    return value
