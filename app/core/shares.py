"""Fairness: how many places one key (a host, a domain, a handler) may hold, so that none delays the others.

The one rule of fairness, kept apart from what waits and runs. Times are seconds of any clock that never
goes back.
"""

from dataclasses import dataclass, field

PART = 4
"""A key gets one place in so many, and as many again are never given away: for what needs no place."""

SOONEST, LATEST = 2.0, 60.0
"""When what was turned away for longer than a moment comes again; RQ's scheduler looks once a second."""

_BRIEF = 0.001
_SMOOTH = 0.3
_IDLE_KEYS = 256


@dataclass(slots=True)
class _Line:
    """One key: since when its places are taken, for how long usually, and the last turn given."""

    running: list[float] = field(default_factory=list)
    duration: float = 0.0
    booked: float = 0.0


class Shares:
    """`ask` before something begins and `ended` after it.

    A key gets at most `share` places, and less when many are taken: never more than are left for others.
    """

    def __init__(self, share: int, most: int) -> None:
        """Let `most` run at the same time, and `share` of one key."""
        self.running = 0
        self._share = share
        self._most = most
        self._lines: dict[str, _Line] = {}

    @classmethod
    def of(cls, slots: int) -> "Shares":
        """A quarter of the slots for each key, and a quarter left over."""
        share = max(1, slots // PART)
        return cls(share, max(1, slots - share))

    def ask(self, key: str, now: float) -> float | None:
        """None: it may begin, and `ended` must follow; else after how many seconds to ask again.

        Each who is turned away gets a turn of its own, as fast as those who run make room.
        """
        line = self._lines.setdefault(key, _Line())
        if len(line.running) < min(self._share, self._most - self.running):
            line.running.append(now)
            self.running += 1
            return None
        oldest = min(line.running, default=now)
        pace = max(_BRIEF, line.duration / self._share, (now - oldest) / self._share)
        line.booked = min(max(line.booked, now) + pace, now + LATEST)
        return line.booked - now

    def ended(self, key: str, began: float, now: float) -> None:
        """Note the end of what began at `began`."""
        line = self._lines[key]
        line.running.remove(began)
        line.duration += _SMOOTH * (now - began - line.duration)
        self.running -= 1
        if len(self._lines) > _IDLE_KEYS:
            self._lines = {one: it for one, it in self._lines.items() if it.running or it.booked > now}


TIMEOUTS = 5
"""Attempts in a row that got no answer in time, after which a handler is only probed."""

PROBE_EVERY = 30.0
MOMENT = 0.5
"""Seconds that a job waits in its slot for a handler that answers within them, before it is put back."""

LATEST_PROBED = 300.0
"""`LATEST` while a handler is only probed: coming back in vain costs some twenty commands of Redis."""


def share_of(slots: int) -> int:
    """The slots of a process that one handler may take."""
    return max(1, slots // PART)


class Downstream:
    """What one process knows of one handler: the attempts that run, and how the latest ones ended.

    A job asks before its attempt and tells how it ended; one that is put back is told when to come again.
    That is as fast as the handler can take them, not all at once: a thousand that came again every few
    seconds would keep the process busy with nothing else.
    """

    def __init__(self, share: int) -> None:
        """Let `share` attempts run at the same time."""
        self.timeouts = 0
        self._share = share
        self._running: list[float] = []
        self._duration = 0.0
        self._probe_at = 0.0
        self._booked = 0.0

    def ask(self, now: float) -> float | None:
        """None: the attempt may begin, and `ended` must follow; else how long the job has to wait."""
        if self.timeouts >= TIMEOUTS:
            if self._running or now < self._probe_at:
                return self._put_back(now, PROBE_EVERY, LATEST_PROBED)
            self._probe_at = now + PROBE_EVERY
        elif len(self._running) >= self._share:
            duration = max(self._duration, now - min(self._running))
            return self._put_back(now, duration / self._share, LATEST)
        self._running.append(now)
        return None

    def is_worth_waiting_for(self, now: float, waiting: int) -> bool:
        """Whether its places are taken, but likely to be free in a moment: coming again costs more.

        `waiting` jobs do so already; as many as there are places may, so that others find slots.
        """
        if self.timeouts or len(self._running) < self._share:
            return False
        return waiting < self._share and now - min(self._running) < MOMENT

    def ended(self, began: float, now: float, *, answered: bool, timed_out: bool) -> None:
        """Note the end of the attempt that was permitted at `began`.

        Any answer shows that the handler lives; only silence holds slots, so a refused connection is neither.
        """
        self._running.remove(began)
        self._duration += _SMOOTH * (now - began - self._duration)
        if answered:
            self.timeouts = 0
        elif timed_out:
            self.timeouts += 1
            if self.timeouts == TIMEOUTS:
                self._probe_at = now + PROBE_EVERY

    def _put_back(self, now: float, pace: float, latest: float) -> float:
        self._booked = min(max(self._booked + pace, now + SOONEST), now + latest)
        return self._booked - now
