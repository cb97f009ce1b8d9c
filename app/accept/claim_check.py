"""Large bodies wait in the storage, not in Redis: the record holds no more than a claim to them.

The object is durable before the record points to it. It is removed when the manifest, which holds all of it,
is written. What Redis calls a repeat is not brought there, or removed again; what a crash leaves, the sweep
takes.
"""

import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as WaitedTooLong
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from redis.exceptions import RedisError

from app.accept.records import LARGE, Accepted, Arrival, Records
from app.core.errors import OutkeepError, StorageFailure
from app.core.names import Kind, claim_name, split_claim_name
from app.storage.store import Storage

THREADS = 4
"""Bodies on their way to the storage at the same time; should it hang, no more are held in memory."""

FRESH = 600.0
"""Seconds for which an object that is there is taken as it is: the sweep leaves it alone for longer."""

RETRY_AFTER = 5

log = logging.getLogger("outkeep.receiver")


class ClaimCheck:
    """Takes large bodies of one process. Many processes may take the same body: it has one name."""

    def __init__(
        self,
        storage: Storage,
        records: Records,
        *,
        patience: float,
        disk_floor: int | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Wait `patience` seconds for the storage to take a body, wherever one of our methods waits.

        `disk_floor` is as `Storage.require_room` has it.
        """
        self.patience = patience
        self._storage = storage
        self._records = records
        self._disk_floor = disk_floor
        self._clock = clock
        # Their own: should storage hang, it must hang for nobody else.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="claims")

    @staticmethod
    def concerns(arrival: Arrival) -> bool:
        """Whether anything is to be done; nearly all deliveries are small."""
        return len(arrival.body) > LARGE and arrival.job is not None

    def begin(self, arrival: Arrival) -> "Future[Arrival]":
        """The arrival as it may go to Redis: a large body lies in the storage once the future is done.

        It raises `Transient` when Redis or the storage fails. Cancel it when nobody waits any more.
        """
        if not self.concerns(arrival):
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

    def begin_settling(self, arrival: Arrival, checked: Arrival, outcome: Accepted) -> "Future[None]":
        """Leave a body in the storage if, and only if, a record leads to it.

        `checked` is what became of `arrival` here, `outcome` how Redis took it. The future raises `Transient`
        when what was taken for a repeat is none any more: then all of it must come again.
        """
        if checked is arrival:
            done: Future[None] = Future()
            done.set_result(None)
            return done
        return self._threads.submit(self._settle, arrival, checked, outcome)

    def settle(self, arrival: Arrival, checked: Arrival, outcome: Accepted) -> None:
        """The same at once; after `patience` it goes on by itself."""
        with suppress(WaitedTooLong):
            self.begin_settling(arrival, checked, outcome).result(self.patience)

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
        if self._records.is_repeat(arrival, awaits_no=name):
            return replace(arrival, body=b"", is_repeat=True)
        if self._is_there(name, len(arrival.body)):
            self._storage.settle(name)  # that try may have been killed before
        else:
            self._storage.require_room(len(arrival.body), self._disk_floor)
            self._storage.put_bytes(name, arrival.body)
        return replace(arrival, body=b"", body_at=name)

    def _settle(self, arrival: Arrival, checked: Arrival, outcome: Accepted) -> None:
        if outcome is Accepted.WANTED:
            raise StorageFailure("claim_wanted", "it is no repeat any more", retry_after=RETRY_AFTER)
        name, place = checked.body_at, (arrival.prediction.kind, arrival.prediction.id)
        if name is None:
            return
        try:
            if outcome is not Accepted.ACCEPTED and not self._is_awaited(*place, name):
                self._storage.remove([name])
            # Another delivery of these bytes may have been accepted while this one was removed.
            if self._is_awaited(*place, name) and self._storage.head(name) is None:
                self._storage.put_bytes(name, arrival.body)
        except (OutkeepError, RedisError) as error:
            facts = {"object": name, "reason": type(error).__name__}
            log.info("whether a large body is still needed could not be told; the sweep will", extra=facts)

    def _is_awaited(self, kind: Kind, prediction_id: str, name: str) -> bool:
        record = self._records.get(kind, prediction_id)
        return record is not None and record.body_at == name

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
