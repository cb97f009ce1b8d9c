"""How long we try: the hour of an output, and the days of a notification. Times are in seconds."""

from collections.abc import MutableMapping
from datetime import datetime, timedelta

from app.core.answers import Body, Unconfirmed
from app.core.errors import OutkeepError, Transient

HOUR = 3600.0
"""Replicate removes the files of a prediction this long after it ended."""

LATE_ATTEMPT = 480.0
"""What the one attempt gets that is made after the hour: its cache can outlive the hour."""

PERSIST_MARGIN = 600
"""How long a persist job may run on after the hour: more than `LATE_ATTEMPT`, to say what was lost."""

NOTIFY_DELAYS = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
"""Waits before the second and later attempts to notify a handler; then dead letter."""

UNCOUNTED = frozenset({"api_busy", "creations_limited", "follow_up_running", "follow_up_sought"})
"""What puts a notification off and is no attempt: nothing was tried, or somebody asked us to wait."""

UNKNOWN_PATIENCE = timedelta(minutes=30)
"""How long a delivery waits whose handler a process does not know: another one, or a later one, may."""

UNKNOWN_WAIT = 15.0
"""Seconds until it is looked at again, by whichever process."""

MAX_RETRY_AFTER = 86400.0
RETRIED_ONCE = frozenset({"forbidden"})
RETRIED_WITHIN_THE_HOUR = frozenset({"address_refused"})
"""Permanent by itself, but names may lead elsewhere a little later."""
MENDED_BY_SETTING = frozenset({"host_refused", "scheme_refused", "port_refused"})
"""Lost at once, since nothing waits for what only the operator can change; but once `OUTKEEP_OUTPUT_HOSTS`
was changed within the hour the file is fetched after all."""

SOONEST_ASK, LATEST_ASK = 2.0, 30.0
"""The shortest and the longest wait before Replicate is asked again for what was created here."""

INPUT_PATIENCE = 20.0
"""How much longer than the outputs the inputs of a prediction may take: handlers wait for it."""

NOT_YET_THERE = 60.0
"""Seconds after the end of a prediction in which some hosts answer 404 for files that are about to appear."""

_ABSENT_DELAYS = (2.0, 4.5)
_MOST_AHEAD, _MOST_BEHIND = timedelta(minutes=5), timedelta(hours=2)
_FETCH_BASE = 2.0
_FETCH_CAP = 120.0


def believed(completed_at: datetime | None, received_at: datetime) -> datetime | None:
    """`completed_at`, if it lies near the receipt: clocks differ and recordings hold absurd times."""
    if completed_at is not None and -_MOST_AHEAD <= received_at - completed_at <= _MOST_BEHIND:
        return completed_at
    return None


def keep_until(completed_at: datetime | None, received_at: datetime) -> datetime:
    """When the outputs are gone."""
    return (believed(completed_at, received_at) or received_at) + timedelta(seconds=HOUR)


def attempt_timeout(remaining: float) -> float:
    """How long one attempt to fetch may take, `remaining` seconds before the end of the hour."""
    return max(remaining, LATE_ATTEMPT)


def fetch_delay(error: OutkeepError, *, attempt: int, remaining: float, jitter: float) -> float | None:
    """How long to wait before a file is tried again; None when it is lost.

    Args:
        error: why the attempt failed.
        attempt: attempts made so far that failed alike, 1 or more.
        remaining: seconds left of the hour, may be negative.
        jitter: uniform in [0, 1).
    """
    if error.code == "not_found":
        return _absent_delay(attempt, remaining, jitter)
    if not isinstance(error, Transient) and error.code not in RETRIED_WITHIN_THE_HOUR:
        return None
    if error.code in RETRIED_ONCE and attempt > 1:
        return None
    if remaining <= 0:
        return None
    wait = min(_FETCH_BASE * 2.0 ** min(attempt - 1, 10), _FETCH_CAP) * (0.5 + jitter / 2)
    asked = error.retry_after if isinstance(error, Transient) else None
    return min(max(wait, asked or 0.0), remaining)


def _absent_delay(attempt: int, remaining: float, jitter: float) -> float | None:
    """Asked three times within some ten seconds, if the first time was soon after the end."""
    if attempt > len(_ABSENT_DELAYS) or (attempt == 1 and HOUR - remaining > NOT_YET_THERE):
        return None
    return _ABSENT_DELAYS[attempt - 1] * (1 + jitter / 8)


def input_delay(*, attempt: int, asked: float | None) -> float:
    """How long to wait before an input is tried again: there is no time for more than a few attempts."""
    return max(min(2.0 ** (attempt - 1), 8.0), asked or 0.0)


def poll_delay(*, age: float, failures: int, asked: float | None) -> float:
    """How long to wait before Replicate is asked again how far a prediction is.

    `age` is since when it is followed: what takes long is asked for less often. `failures` in a row, and what
    the API `asked` for, make it longer.
    """
    usual = min(max(0.5, age / 60), 5.0)
    return max(min(usual * 2.0 ** min(failures, 6), 30.0), min(asked or 0.0, MAX_RETRY_AFTER))


def ask_delay(age: float) -> float:
    """How long to wait before Replicate is asked again for what was created here and nobody else tells of.

    `age` is since its creation: a tenth of that keeps the wait small beside what it took.
    """
    return min(max(age / 10, SOONEST_ASK), LATEST_ASK)


def store_delay(*, attempt: int, jitter: float) -> float:
    """How long to wait when our own storage fails: without end, since the operator can mend it."""
    return min(2.0 * 2.0 ** min(attempt, 10), 300.0) * (0.5 + jitter / 2)


def put_off(error: OutkeepError, *, faults: int, jitter: float) -> float:
    """How long to wait before the next run when there was no attempt, for the time number `faults`."""
    asked = error.retry_after if isinstance(error, Transient) else None
    if asked is None:
        return store_delay(attempt=faults, jitter=jitter)
    return min(asked, MAX_RETRY_AFTER) * (1 + jitter / 2)


def notify_delay(*, attempt: int, retry_after: float | None, jitter: float) -> float | None:
    """How long to wait after failed attempt number `attempt` (1 or more); None means dead letter."""
    if attempt > len(NOTIFY_DELAYS):
        return None
    wait = NOTIFY_DELAYS[attempt - 1] * (0.9 + jitter / 5)
    return max(wait, min(retry_after or 0.0, MAX_RETRY_AFTER))


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
