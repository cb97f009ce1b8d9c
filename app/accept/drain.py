"""Feeds the spool back to Redis, oldest first, in a thread of the receiver."""

import logging
import threading
from collections.abc import Callable, Sequence, Set
from datetime import datetime, timedelta
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from app.accept.arrivals import foreign, make_arrival, outlined
from app.accept.claim_check import ClaimCheck
from app.accept.quarantine import COUNTED_FOR, Aside, Quarantine
from app.accept.records import LARGE, Accepted, Arrival, Records
from app.accept.spool import Spool, Waiting
from app.core.errors import StorageFailure, Transient, Unusable
from app.core.prediction import parse

INTERVAL = 1.0
"""Seconds between two looks at the spool."""

TIMEOUT = 5.0
"""Seconds that one call to Redis may take: nobody waits for it but our own shutdown."""

MAX_BATCH = 64
MAX_BATCH_BYTES = 8 << 20
OUTLINES_AT_ONCE = 8
"""Each may be read from many megabytes, while small ones wait."""

RENEWED = timedelta(hours=1)
"""After this an outline is sent again: its record must not expire while the event waits."""

MAX_FAILURES = 4
"""Failures in a row after which Redis is taken for unwell; fewer may be the fault of single deliveries."""

log = logging.getLogger("outkeep.spool")


class Drainer:
    """Several may work on one folder: `Records.accept` takes each delivery for new only once."""

    def __init__(
        self,
        spool: Spool,
        redis: Redis,
        records: Records,
        claims: ClaimCheck,
        clock: Callable[[], datetime],
        *,
        quarantine: Quarantine,
    ) -> None:
        """Both `redis` and `records` are on a client that waits for `TIMEOUT`."""
        self._claims = claims
        self._quarantine = quarantine
        self._spool = spool
        self._redis = redis
        self._records = records
        self._clock = clock
        # Accepted, but the disk lets go of nothing: they would stand before the others again and again.
        self._accepted: set[Path] = set()
        # What the quarantine has no room for stays in the spool, and is read again after a while.
        self._unkept: dict[Path, datetime] = {}
        self._outlined: dict[Path, datetime] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look at the spool."""
        self._thread = threading.Thread(target=self._run, name="drainer")
        self._thread.start()

    def stop(self) -> None:
        """Wait for the batch on its way, some seconds at most, and end."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        said = ""
        while not self._stopping.wait(INTERVAL):
            try:
                self._remove(self._accepted)
                now = self._clock()
                self._unkept = {path: at for path, at in self._unkept.items() if now - at < COUNTED_FOR}
                passed = self._accepted | self._unkept.keys()
                if waiting := [one for one in self._spool.waiting() if one.path not in passed]:
                    self._redis.ping()
                    # The storage may keep large ones waiting, and these nobody.
                    self._drain([one for one in waiting if one.size <= LARGE])
                    self._drain_large([one for one in waiting if one.size > LARGE])
                self._spool.tidy(self._clock().timestamp())
                said = ""
            except RedisError as error:
                log.debug("the spool waits for Redis", extra={"reason": type(error).__name__})
            except OSError as error:
                if said != str(error):
                    log.warning("the spool cannot be read; it waits on", extra={"reason": str(error)})
                said = str(error)

    def _drain(self, waiting: Sequence[Waiting]) -> None:
        limit, failures, fed = MAX_BATCH, 0, 0
        while waiting and failures < MAX_FAILURES and not self._stopping.is_set():
            batch = _next_batch(waiting, limit)
            waiting = waiting[len(batch) :]
            try:
                fed += self._feed(batch)
                failures = 0
            except Transient:
                failures += 1
                if limit > 1:
                    # One of them may be the cause, and must not hold up the others.
                    waiting, limit = [*batch, *waiting], 1
        if fed:
            log.info("deliveries from the spool are accepted", extra={"count": fed, "left": len(waiting)})

    def _drain_large(self, waiting: Sequence[Waiting]) -> None:
        """Feed them one by one until the storage or Redis fails."""
        for number, one in enumerate(waiting, 1):
            if self._stopping.is_set():
                return
            try:
                fed = self._feed([one])
            except Transient as error:
                log.debug("a large delivery waits on in the spool", extra={"code": error.code})
                if isinstance(error, StorageFailure):
                    self._outline(waiting[number - 1 :])
                return
            facts = {"count": fed, "left": len(waiting) - number}
            log.info("deliveries from the spool are accepted", extra=facts)

    def _outline(self, waiting: Sequence[Waiting]) -> None:
        """Let the outputs of what waits for the storage be fetched: their hour does not wait."""
        now, left = self._clock(), {one.path for one in waiting}
        self._outlined = {
            path: at for path, at in self._outlined.items() if path in left and now - at < RENEWED
        }
        fresh = [one for one in waiting if one.path not in self._outlined]
        for one in fresh[:OUTLINES_AT_ONCE]:
            arrival = self._read(one)
            short = None if arrival is None else outlined(arrival)
            if short is not None:
                try:
                    [outcome] = self._records.accept([short], now)
                except Transient:
                    return
                facts = {"id": short.prediction.id, "outcome": outcome}
                log.info("outputs of a delivery that waits are fetched", extra=facts)
            self._outlined[one.path] = now

    def _feed(self, batch: Sequence[Waiting]) -> int:
        read = [(one, arrival) for one in batch if (arrival := self._read(one)) is not None]
        checked = [self._claims.check_in(arrival) for _, arrival in read]
        outcomes = self._records.accept(checked, self._clock())
        for (one, arrival), sent, outcome in zip(read, checked, outcomes, strict=True):
            self._claims.settle(arrival, sent, outcome)
            if outcome is Accepted.FOREIGN:
                try:
                    self._set_aside(arrival)
                except Transient as error:
                    self._unkept[one.path] = self._clock()
                    log.warning("a delivery of Cog waits in the spool: %s", error.message)
        done = {one.path for one, _ in read} - self._unkept.keys()
        self._remove(done)
        return len(done)

    def _set_aside(self, arrival: Arrival) -> None:
        prediction, receipt = arrival.prediction, arrival.receipt
        reason = foreign(prediction.id)
        aside = Aside(
            prediction.kind, arrival.body, reason, receipt.received_at, receipt.source, receipt.query, {}
        )
        self._quarantine.put(aside)

    def _remove(self, paths: Set[Path]) -> None:
        """Remove what is accepted, or remember what cannot be."""
        left = set()
        for path in paths:
            try:
                self._spool.remove(path)
            except OSError as error:
                left.add(path)
                reason = str(error)
        if left - self._accepted:
            facts = {"count": len(left), "reason": reason}
            log.warning("deliveries from the spool are accepted and cannot be removed from it", extra=facts)
        self._accepted = (self._accepted - paths) | left

    def _read(self, one: Waiting) -> Arrival | None:
        spooled = self._spool.read(one.path)
        if spooled is None:
            return None
        try:
            prediction = parse(spooled.body, spooled.kind)
        except Unusable as error:
            log.error("a delivery in the spool cannot be used; it is set aside", extra={"code": error.code})  # noqa: TRY400  # fmt: skip
            self._spool.set_aside(one.path)
            return None
        return make_arrival(self._redis, prediction, spooled.body, spooled.receipt, self._clock())


def _next_batch(waiting: Sequence[Waiting], limit: int) -> Sequence[Waiting]:
    """The first ones, `limit` or `MAX_BATCH_BYTES` at most, but at least one."""
    size = 0
    for count, one in enumerate(waiting[:limit]):
        size += one.size
        if count and size > MAX_BATCH_BYTES:
            return waiting[:count]
    return waiting[:limit]
