"""The log of webhook attempts, which another thread can watch."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

REFUSED = 400
"""Status from which on an answer is a refusal; Replicate takes a redirect for delivered."""

_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Attempt:
    """One POST. `subject` is the prediction's id, `status` None when no answer came (`error` says why).

    `timestamp` is what was signed (seconds), `sent_at` is monotonic seconds; `settled` means that no
    further attempt at this event follows.
    """

    subject: str
    event: str
    url: str
    webhook_id: str
    number: int
    timestamp: int
    sent_at: float
    status: int | None
    error: str | None
    settled: bool

    @property
    def failure(self) -> str | None:
        """Why it did not arrive; None when it did."""
        if self.error is not None:
            return self.error
        return f"answered {self.status}" if self.status is None or self.status >= REFUSED else None


class Attempts:
    """The newest ten thousand attempts, in the order in which they ended; `watch` is called with each."""

    def __init__(self, watch: Callable[[Attempt], None] = lambda _: None) -> None:
        self._watch = watch
        self._changed = threading.Condition()
        self._kept: deque[Attempt] = deque(maxlen=_KEPT)

    def record(self, attempt: Attempt) -> None:
        """Add one and wake whoever waits."""
        with self._changed:
            self._kept.append(attempt)
            self._changed.notify_all()
        self._watch(attempt)

    def of(self, subject: str) -> list[Attempt]:
        """All attempts about one prediction."""
        with self._changed:
            return [attempt for attempt in self._kept if attempt.subject == subject]

    def wait(self, subject: str, enough: Callable[[list[Attempt]], bool], timeout: float) -> list[Attempt]:
        """The attempts about one prediction, once there are enough. Raises `TimeoutError` (seconds)."""
        with self._changed:
            if self._changed.wait_for(lambda: enough(self.of(subject)), timeout):
                return self.of(subject)
        raise TimeoutError(f"after {timeout} s the attempts about {subject} are {self.of(subject)}")
