"""How often each file of a prediction failed, and when it is asked for again: what one run tells the next."""

from collections.abc import MutableMapping

from app.core.errors import OutkeepError
from app.core.policy import RETRIED_ONCE, fetch_delay

State = MutableMapping[str, list[float]]
"""File → [failures retried within the hour, failures retried once, when it may be asked for again (Unix
seconds)]; plain values, kept as JSON."""


class Tries:
    """A view of `state`, which it changes in place. Files of one prediction fail and wait each for itself."""

    def __init__(self, state: State) -> None:
        self._state = state

    def wait(self, file: str, now: float) -> float:
        """Seconds until a file may be asked for; 0 or less: at once."""
        *_, due = self._state.get(file, (0, 0, now))
        return due - now

    def failed(
        self, file: str, error: OutkeepError, *, now: float, remaining: float, jitter: float
    ) -> float | None:
        """Count a failure; seconds to wait before the next attempt, None when the file is lost.

        `remaining` is what is left of the hour in seconds, `jitter` uniform in [0, 1).
        """
        counts = [int(count) for count in self._state.get(file, (0, 0, 0))[:2]]
        which = int(error.code in RETRIED_ONCE)
        counts[which] += 1
        delay = fetch_delay(error, attempt=counts[which], remaining=remaining, jitter=jitter)
        if delay is None:
            self._state.pop(file, None)
        else:
            self._state[file] = [*counts, now + delay]
        return delay
