"""Counts of this process on their way to Redis: one round trip a second, never one for each delivery.

What Redis did not take yet waits on disk, too, for the next process: Redis may be away for longer than this
one lives. What was counted in the last second before a crash is missing; nothing else depends on it. A batch
that Redis did not confirm is sent again, and may then count twice.
"""

import fcntl
import json
import logging
import os
import re
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError

from app.core.names import COUNTERS
from app.core.vocabulary import Counter, Histogram
from app.disk import make_folder

INTERVAL: Final = 1.0
"""Seconds between two batches."""

LAST: Final = 3.0
"""Seconds that the end of a process waits for the last batch."""

FOLDER: Final = "counts"
"""Below the data of a host: what its processes could not tell Redis."""

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
            self._waiting[f"{histogram.name}_sum"] += round(value * histogram.parts)

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
            self._change(batch, 1)

    @contextmanager
    def flushing(self, redis: Redis, folder: Path | None = None) -> Iterator["Tally"]:
        """Flush from a thread during the block, and once more at its end.

        `redis` should give up quickly and not try again: the end of the process waits for it. What it does
        not take is kept in `folder`, and what dead processes have left there is taken over.
        """
        ended = threading.Event()
        kept = None if folder is None else Kept(folder)

        def work() -> None:
            over = False
            while not over:
                if kept is not None:
                    self._take_over(kept)
                over = ended.wait(INTERVAL)
                self.flush(redis)
                if kept is not None:
                    kept.save(self.waiting())
            if kept is not None:
                kept.close()

        thread = threading.Thread(target=work, name="tally", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            # A Redis that drips its answer byte by byte runs into no time-out.
            thread.join(LAST)

    def _take_over(self, kept: "Kept") -> None:
        for path, counts in kept.left_behind():
            self._change(counts, 1)
            if not (kept.save(self.waiting()) and _removed(path)):
                self._change(counts, -1)  # it waits there for a disk that takes files

    def _change(self, counts: Mapping[str, int], sign: int) -> None:
        with self._lock:
            for field, amount in counts.items():
                self._waiting[field] += sign * amount
                if not self._waiting[field]:
                    del self._waiting[field]

    def _field(self, counter: Counter, labels: tuple[object, ...]) -> str:
        values = [str(value) if _VALUE.fullmatch(str(value)) else OTHER for value in labels]
        field = series(counter, values)
        known = self._series[counter.name]
        if field not in known:
            if len(known) >= MOST_SERIES:
                return series(counter, [OTHER] * len(counter.labels))
            known.add(field)
        return field


class Kept:
    """A file with the counts that Redis did not take yet, locked while its process lives; there is none else.

    It survives the process, not the machine: it is not synced. A disk that takes no file loses nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"{uuid4().hex}.counts"
        self._file: IO[str] | None = None

    def save(self, counts: Mapping[str, int]) -> bool:
        """Keep these instead of what was kept before; False if the disk does not take them."""
        try:
            if counts:
                self._write(json.dumps(counts))
            elif self._file is not None:
                self._file.truncate(0)  # it may not be possible to remove it
                self._path.unlink(missing_ok=True)
                self._file.close()
                self._file = None
        except OSError as error:
            log.debug("counts wait in memory alone: %s", error)
            return False
        return True

    def close(self) -> None:
        """Leave the file to whoever comes next."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def left_behind(self) -> Iterator[tuple[Path, dict[str, int]]]:
        """What dead processes have kept; whoever takes it over removes the file."""
        for path in self._folder.glob("*.counts"):
            with suppress(OSError), path.open() as file:  # another may have taken it
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file.fileno()).st_nlink:
                    yield path, _read(file)

    def _write(self, text: str) -> None:
        make_folder(self._folder)
        draft = self._path.with_suffix(".draft")
        file = draft.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)  # before it bears its name: nobody may take it for left behind
        try:
            file.write(text)
            file.flush()
            draft.rename(self._path)
        except OSError:
            file.close()
            raise
        if self._file is not None:
            self._file.close()
        self._file = file


def _removed(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.debug("counts that were left behind stay there: %s", error)
        return False
    return True


def _read(file: IO[str]) -> dict[str, int]:
    """Counts that were kept; nothing where they were torn by a crash of the machine."""
    try:
        return {str(field): int(amount) for field, amount in json.load(file).items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def series(counter: Counter, values: list[str]) -> str:
    """How a counter with its labels is spelt in Redis: `name{label="value"}`."""
    pairs = ",".join(f'{label}="{value}"' for label, value in zip(counter.labels, values, strict=True))
    return f"{counter.name}{{{pairs}}}" if pairs else counter.name
