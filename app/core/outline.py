"""What of a large event is needed to fetch its outputs, while no storage takes the event itself."""

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

from app.core.outputs import MAX_SPOTS, bare, find_spots, is_inline

KEYS = ("id", "status", "model", "version", "created_at", "completed_at")
"""What stays as it is; input and logs, which make most events large, are left out."""


def outline(raw: Mapping[str, Any], *, limit: int) -> bytes | None:
    """A terminal object without its input, logs, text and inline files, as JSON of `limit` bytes at most.

    None when that is not possible, or there is nothing to fetch.
    """
    output = bare(raw.get("output"))
    if all(is_inline(spot.source) for spot in islice(find_spots(output), MAX_SPOTS)):
        return None
    short = {key: raw[key] for key in KEYS if key in raw} | {"output": output}
    body = json.dumps(short).encode()
    return body if len(body) <= limit else None
