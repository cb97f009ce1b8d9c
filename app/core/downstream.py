"""How much of a worker process one handler may take, so that a dead or slow one delays no other.

Times are seconds of any clock that never goes back.
"""

PART = 4
"""At most one slot in so many belongs to one handler."""

TIMEOUTS = 5
"""Attempts in a row that got no answer in time, after which a handler is only probed."""

PROBE_EVERY = 30.0

SOONEST, LATEST = 2.0, 60.0
"""When a job that was put back comes again; RQ's scheduler looks once a second."""

LATEST_PROBED = 300.0
"""The same while a handler is only probed: coming back in vain costs some twenty commands of Redis."""

_SMOOTH = 0.3


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
