"""How a prediction is known again whose creation nobody could note: Replicate takes no key of ours."""

import hashlib
import json
from datetime import datetime, timedelta
from typing import Any

from app.core.policy import HOUR
from app.core.prediction import Prediction

SOUGHT_FOR = HOUR - 900
"""Seconds after its end for which a prediction may wait for the job that created it; files live an hour."""


def fingerprint(given: Any) -> str:
    """The same for two inputs that are the same JSON, however they are written."""
    text = json.dumps(_plain(given), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def may_wait(prediction: Prediction, now: datetime) -> bool:
    """Whether a prediction that ended may be left to the job that perhaps created it.

    Not one that names a webhook: that says itself what it follows.
    """
    ended = prediction.completed_at
    return (
        not prediction.raw.get("webhook")
        and ended is not None
        and now < ended + timedelta(seconds=SOUGHT_FOR)
    )


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value
