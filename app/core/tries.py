"""How often each file of a prediction failed, and when it is asked for again: what one run tells the next."""

from collections.abc import MutableMapping

from app.core.answers import Body, Unconfirmed
from app.core.errors import OutkeepError
from app.core.policy import RETRIED_ONCE, fetch_delay

State = MutableMapping[str, list[float]]
"""File → [failures retried within the hour, failures retried once, when it may be asked for again (Unix
seconds)]; `<file>:held` → [when it was first held]; `<file>:absent` → [answers of 404]; `<file>:body` →
[size, hash as a number: what the latest try brought, and may not be whole]; `turned_away` → [how many runs].
Plain values, kept as JSON."""

_TURNED_AWAY = "turned_away"

HELD_FOR = 86400.0
"""Seconds for which others do not give up a file that a host holds, since the storage did not take it."""


class Tries:
    """A view of `state`, which it changes in place. Files of one prediction fail and wait each for itself."""

    def __init__(self, state: State) -> None:
        self._state = state

    def wait(self, file: str, now: float) -> float:
        """Seconds until a file may be asked for; 0 or less: at once."""
        *_, due = self._state.get(file, (0, 0, now))
        return due - now

    def held(self, file: str, now: float) -> None:
        """Note that a host of ours has downloaded a file, and holds it until the storage takes it."""
        self._state.setdefault(_held(file), [now])

    def is_held(self, file: str, now: float) -> bool:
        """Whether a host of ours, perhaps another one, should still hold a file."""
        return now - self._state.get(_held(file), [-HELD_FOR])[0] < HELD_FOR

    def body(self, file: str) -> Body | None:
        """What the latest try brought, if only another try can tell whether that is the whole file."""
        size, digest = self._state.get(_body(file), (0, -1))
        return (int(size), f"{int(digest):064x}") if digest >= 0 else None

    @property
    def turned_away(self) -> int:
        """How many runs ended since others took all places: they were none, and make no wait longer."""
        return int(self._state.get(_TURNED_AWAY, [0])[0])

    def turn_away(self) -> None:
        """Count such a run."""
        self._state[_TURNED_AWAY] = [self.turned_away + 1]

    def failed(
        self, file: str, error: OutkeepError, *, now: float, remaining: float, jitter: float
    ) -> float | None:
        """Count a failure; seconds to wait before the next attempt, None when the file is lost.

        `remaining` is what is left of the hour in seconds, `jitter` uniform in [0, 1).
        """
        counts = [int(count) for count in self._state.get(file, (0, 0, 0))[:2]]
        counts += [int(count) for count in self._state.get(_absent(file), (0,))]
        which = 2 if error.code == "not_found" else int(error.code in RETRIED_ONCE)
        counts[which] += 1
        before = self._state.pop(_body(file), None)
        if isinstance(error, Unconfirmed):
            size, digest = error.body
            self._state[_body(file)] = [size, int(digest, 16)]
            if before is None:  # a second look is owed to what comes after the hour, too
                remaining = max(remaining, 1.0)
        delay = fetch_delay(error, attempt=counts[which], remaining=remaining, jitter=jitter)
        if delay is None:
            for key in (file, _absent(file), _body(file)):
                self._state.pop(key, None)
            return None
        *usual, absent = counts
        self._state[file] = [*usual, now + delay]
        if absent:
            self._state[_absent(file)] = [absent]
        return delay


def _absent(file: str) -> str:
    return f"{file}:absent"


def _body(file: str) -> str:
    return f"{file}:body"


def _held(file: str) -> str:
    return f"{file}:held"
