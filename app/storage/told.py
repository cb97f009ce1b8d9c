"""The files `told-<handler>.json` in storage: how deliveries ended, read and written."""

import json
from typing import Any

from app.core import outcomes
from app.core.names import Kind, notification_id, object_name, outcome_name
from app.core.outcomes import Told
from app.storage.store import Storage


def read(storage: Storage, handler: str, kind: Kind, prediction_id: str) -> Told | None:
    """How a delivery ended; None when it has not, or the file is torn. Raises the storage's errors."""
    data = storage.get(_name(handler, kind, prediction_id))
    return None if data is None else outcomes.read(data)


def write(storage: Storage, handler: str, kind: Kind, prediction_id: str, told: Told) -> dict[str, Any]:
    """Say how a delivery ended, and give back what was written. Raises the storage's errors."""
    document = outcomes.document(notification_id(handler, kind, prediction_id), told)
    storage.put_bytes(_name(handler, kind, prediction_id), json.dumps(document).encode())
    return document


def _name(handler: str, kind: Kind, prediction_id: str) -> str:
    return object_name(kind, prediction_id, outcome_name(handler))
