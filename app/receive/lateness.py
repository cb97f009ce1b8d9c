"""Deliveries with a good signature and another time: our clock is off, or somebody sends old ones again."""

from collections import deque

from app.core.findings import Finding, out_of_time

WINDOW = 600.0
"""Seconds for which a refusal is remembered."""

MOST = 1000


class Lateness:
    """What one receiver refused for its age lately; times are Unix seconds."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=MOST)

    def note(self, now: float) -> None:
        """A good signature was refused for its age."""
        self._times.append(now)

    def findings(self, now: float) -> list[Finding]:
        """A warning while such refusals are recent."""
        recent = sum(now - WINDOW <= time <= now for time in self._times)
        return [out_of_time(recent, WINDOW)] if recent else []
