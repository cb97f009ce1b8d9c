"""Large bodies wait in the storage, not in Redis: the record holds no more than a claim to them.

The object is durable before the record points to it. It is removed when the manifest, which holds all of it,
is written; what a crash leaves behind, the sweep takes.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as WaitedTooLong
from dataclasses import replace
from datetime import UTC, datetime

from app.core.errors import StorageFailure
from app.core.names import claim_name, split_claim_name
from app.records import LARGE, Arrival
from app.storage import Storage

THREADS = 4
"""Bodies on their way to the storage at the same time; should it hang, no more are held in memory."""

FRESH = 600.0
"""Seconds for which an object that is there is taken as it is: the sweep leaves it alone for longer."""

RETRY_AFTER = 5


class ClaimCheck:
    """Takes large bodies of one process. Many processes may take the same body: it has one name."""

    def __init__(
        self,
        storage: Storage,
        *,
        patience: float,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Wait `patience` seconds for the storage to take a body, wherever one of our methods waits."""
        self.patience = patience
        self._storage = storage
        self._clock = clock
        # Their own: should storage hang, it must hang for nobody else.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="claims")

    def begin(self, arrival: Arrival) -> "Future[Arrival]":
        """The arrival as it may go to Redis: a large body lies in the storage once the future is done.

        It raises `Transient` when the storage fails. Cancel it when nobody waits any more.
        """
        if len(arrival.body) <= LARGE or arrival.job is None:
            ready: Future[Arrival] = Future()
            ready.set_result(arrival)
            return ready
        return self._threads.submit(self._check_in, arrival)

    def check_in(self, arrival: Arrival) -> Arrival:
        """The same at once; raises `Transient` also when `patience` is over."""
        future = self.begin(arrival)
        try:
            return future.result(self.patience)
        except WaitedTooLong:
            future.cancel()
            raise self.too_slow() from None

    def too_slow(self) -> StorageFailure:
        """What is raised when the storage did not take a body in time."""
        message = f"the storage did not take a large body within {self.patience:.0f} s"
        return StorageFailure("storage_slow", message, retry_after=RETRY_AFTER)

    def close(self) -> None:
        """Take no more; what is on its way may end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _check_in(self, arrival: Arrival) -> Arrival:
        prediction = arrival.prediction
        name = claim_name(prediction.kind, prediction.id, hashlib.sha256(arrival.body).hexdigest())
        if self._is_there(name, len(arrival.body)):
            self._storage.settle(name)  # that try may have been killed before
        else:
            self._storage.put_bytes(name, arrival.body)
        return replace(arrival, body=b"", body_at=name)

    def _is_there(self, name: str, size: int) -> bool:
        """Whether an earlier try, perhaps one that took too long, has brought it there."""
        there = self._storage.head(name)
        if there is None or there.size != size:
            return False
        return (self._clock() - there.changed_at).total_seconds() < FRESH


def claimed(storage: Storage, name: str) -> bytes | None:
    """The body that a record points to; None when it is gone, or is not what was put there."""
    body = storage.get(name)
    place = split_claim_name(name)
    if body is None or place is None or hashlib.sha256(body).hexdigest() != place[2]:
        return None
    return body
