"""Counts of this process on their way to Redis: one round trip a second, never one for each delivery.

What was counted in the last second before a crash is missing; nothing else depends on it. A batch that Redis
did not confirm is sent again, and may then count twice.
"""

import logging
import re
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from redis import Redis
from redis.exceptions import RedisError

from app.core.names import COUNTERS
from app.core.vocabulary import Counter, Histogram

INTERVAL: Final = 1.0
"""Seconds between two batches."""

LAST: Final = 3.0
"""Seconds that the end of a process waits for the last batch."""

MOST_SERIES: Final = 200
"""Label values that one process counts apart for one metric; more go under `OTHER`."""

OTHER: Final = "other"
_VALUE = re.compile(r"[A-Za-z0-9_.+-]{1,64}", re.ASCII)

log = logging.getLogger("outkeep.metrics")


class Tally:
    """Counts by the name of the metric with its labels, spelt as in Prometheus' text. Any thread may count.

    Counting takes no time to speak of and never raises.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, int] = defaultdict(int)
        self._series: dict[str, set[str]] = defaultdict(set)

    def add(self, counter: Counter, *labels: object, amount: int = 1) -> None:
        """Add `amount` under the values of `counter.labels`, in their order."""
        with self._lock:
            self._waiting[self._field(counter, labels)] += amount

    def observe(self, histogram: Histogram, value: float) -> None:
        """Count `value` in its range."""
        place = bisect_left(histogram.buckets, value)
        bound = str(histogram.buckets[place]) if place < len(histogram.buckets) else "+Inf"
        with self._lock:
            self._waiting[f'{histogram.name}_bucket{{le="{bound}"}}'] += 1
            self._waiting[f"{histogram.name}_sum"] += round(value)

    def waiting(self) -> Mapping[str, int]:
        """What Redis was not told yet."""
        with self._lock:
            return dict(self._waiting)

    def flush(self, redis: Redis) -> None:
        """Add everything to Redis, or keep it when Redis does not confirm."""
        with self._lock:
            batch, self._waiting = self._waiting, defaultdict(int)
        if not batch:
            return
        try:
            with redis.pipeline() as pipeline:  # a transaction: all of it or nothing
                for field, amount in batch.items():
                    pipeline.hincrby(COUNTERS, field, amount)
                pipeline.execute()
        except RedisError as error:
            log.debug("counts wait for Redis: %s", type(error).__name__)
            with self._lock:
                for field, amount in batch.items():
                    self._waiting[field] += amount

    @contextmanager
    def flushing(self, redis: Redis) -> Iterator["Tally"]:
        """Flush from a thread during the block, and once more at its end.

        `redis` should give up quickly and not try again: the end of the process waits for it.
        """
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(INTERVAL):
                self.flush(redis)
            self.flush(redis)

        thread = threading.Thread(target=work, name="tally", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            # A Redis that drips its answer byte by byte runs into no time-out.
            thread.join(LAST)

    def _field(self, counter: Counter, labels: tuple[object, ...]) -> str:
        values = [str(value) if _VALUE.fullmatch(str(value)) else OTHER for value in labels]
        field = series(counter, values)
        known = self._series[counter.name]
        if field not in known:
            if len(known) >= MOST_SERIES:
                return series(counter, [OTHER] * len(counter.labels))
            known.add(field)
        return field


def series(counter: Counter, values: list[str]) -> str:
    """How a counter with its labels is spelt in Redis: `name{label="value"}`."""
    pairs = ",".join(f'{label}="{value}"' for label, value in zip(counter.labels, values, strict=True))
    return f"{counter.name}{{{pairs}}}" if pairs else counter.name
