"""How the delivery to a handler ended: `told-<handler>.json` beside the manifest. It outlives every job."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.core.manifest import format_time
from app.core.prediction import parse_time


@dataclass(frozen=True)
class Told:
    """What the file says. `outcome` is `delivered`, `dead` or `off`; `error` is a code, None when told.

    For a job of the user's it is what the job raised. `child` is the follow-up prediction that was created.
    """

    outcome: str
    attempts: int
    at: datetime
    error: str | None
    child: str | None = None

    @property
    def is_dead_letter(self) -> bool:
        """Whether it stands on the list of what was given up.

        `off` without an error is what nobody was meant to be told, and no failure.
        """
        return self.outcome == "dead" or (self.outcome == "off" and not self.is_passed_by)

    @property
    def is_passed_by(self) -> bool:
        """Whether nobody was meant to be told."""
        return self.outcome == "off" and self.error is None


def document(webhook_id: str, told: Told) -> dict[str, Any]:
    """The JSON object of the file."""
    always = {
        "webhook_id": webhook_id,
        "outcome": told.outcome,
        "attempts": told.attempts,
        "at": format_time(told.at),
        "child": told.child,
    }
    return always if told.error is None else {**always, "error": told.error}


def read(data: bytes) -> Told | None:
    """What the file says; None when it is torn by a power cut, or not of ours: telling once more is safe."""
    try:
        document = json.loads(data)
        outcome, attempts = document["outcome"], document["attempts"]
        error, child = document.get("error"), document.get("child")
        at = parse_time(document["at"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(outcome, str) or not isinstance(attempts, int) or at is None:
        return None
    return Told(
        outcome,
        attempts,
        at,
        error if isinstance(error, str) else None,
        child if isinstance(child, str) else None,
    )
