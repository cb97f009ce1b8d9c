"""What enters the inbox: a delivery with its receipt and its job."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from app.accept import queues
from app.accept.records import Arrival
from app.core.errors import Unusable
from app.core.manifest import Receipt
from app.core.policy import PERSIST_MARGIN, keep_until
from app.core.prediction import Prediction


def body_of(raw: Mapping[str, Any]) -> bytes:
    """An object that was read from the API, as a delivery would bring it.

    What is no Unicode must reach the parser, which names it.
    """
    return json.dumps(raw, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def make_arrival(
    prediction: Prediction,
    body: bytes,
    receipt: Receipt,
    now: datetime,
    *,
    is_asked_for: bool = False,
) -> Arrival:
    """`now` is later than the receipt of a delivery that was spooled."""
    job = None
    if prediction.is_terminal:
        left = (keep_until(prediction.completed_at, receipt.received_at) - now).total_seconds()
        timeout = int(max(left, 0)) + PERSIST_MARGIN
        job = queues.new_persist_job(prediction.kind, prediction.id, timeout=timeout, at=now)
    return Arrival(prediction, body, receipt, job, is_asked_for=is_asked_for)


def foreign(prediction_id: str) -> Unusable:
    """Why Cog's end of a prediction of Replicate is set aside."""
    message = f"Replicate tells of {prediction_id}, so Cog's token does not end it; let Cog use other ids"
    return Unusable("foreign_id", message)
