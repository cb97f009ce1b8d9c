"""What is awaited: predictions and trainings that had not ended when they were last heard of."""

from enum import StrEnum
from typing import NamedTuple

from app.core.names import Kind
from app.core.policy import LATEST_ASK, ask_delay
from app.core.reconciling import SILENCE, Found


class Origin(StrEnum):
    """Where it was made, as far as that decides anything."""

    ELSEWHERE = "elsewhere"
    """With the token, by whatever program: a webhook may come."""
    WEB = "web"
    """On the web site."""
    HERE = "here"
    """By us, without a webhook: nothing tells of its end but asking for it."""


class Awaited(NamedTuple):
    """One of them."""

    kind: Kind
    id: str
    origin: Origin


def asked_again_in(found: Found, age: float | None) -> float | None:
    """After how many seconds something created here is asked for again; None: not any more.

    `age` (seconds) is since its creation; None where no record knows it.
    """
    # What was created just now may not be known to every server of the API.
    too_new = found is Found.ABSENT and age is not None and age < SILENCE
    if found in {Found.RUNNING, Found.FAILED} or too_new:
        return LATEST_ASK if age is None else ask_delay(age)
    return None
