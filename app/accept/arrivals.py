"""What enters the inbox: a delivery with its receipt; of a large one, what is needed to fetch its outputs."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any

from redis import Redis

from app.accept import queues
from app.accept.records import LARGE, Arrival
from app.core.errors import Unusable
from app.core.manifest import Receipt
from app.core.outputs import MAX_SPOTS, bare, find_spots, is_inline
from app.core.policy import PERSIST_MARGIN, keep_until
from app.core.prediction import Prediction

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


def body_of(raw: Mapping[str, Any]) -> bytes:
    """An object that was read from the API, as a delivery would bring it.

    What is no Unicode must reach the parser, which names it.
    """
    return json.dumps(raw, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def make_arrival(
    redis: Redis,
    prediction: Prediction,
    body: bytes,
    receipt: Receipt,
    now: datetime,
    *,
    is_asked_for: bool = False,
) -> Arrival:
    """Nothing is sent to `redis` yet. `now` is later than the receipt of a delivery that was spooled."""
    job = None
    if prediction.is_terminal:
        left = (keep_until(prediction.completed_at, receipt.received_at) - now).total_seconds()
        timeout = int(max(left, 0)) + PERSIST_MARGIN
        job = queues.persist_job(redis, prediction.kind, prediction.id, timeout=timeout)
    return Arrival(prediction, body, receipt, job, is_asked_for=is_asked_for)


def outlined(arrival: Arrival) -> Arrival | None:
    """What can be accepted already of a large terminal event that the storage does not take.

    Its outputs are fetched then, while there is time. None when there are none to fetch.
    """
    short = outline(arrival.prediction.raw, limit=LARGE)
    return None if short is None else replace(arrival, body=b"", outline=short)


def foreign(prediction_id: str) -> Unusable:
    """Why Cog's end of a prediction of Replicate is set aside."""
    message = f"Replicate tells of {prediction_id}, so Cog's token does not end it; let Cog use other ids"
    return Unusable("foreign_id", message)
