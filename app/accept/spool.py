"""Deliveries on disk while Redis is away: one synced file each, fed back oldest first when Redis is well.

A file is one line of JSON (`kind`, `sha256` and `size` of the body, and the receipt), a newline, and the body
as received. Its time of change is the time of receipt. `*.part` are being written, `*.damaged` set aside.
"""

import asyncio
import errno
import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from app.accept.arrivals import foreign, make_arrival
from app.accept.claim_check import ClaimCheck
from app.accept.quarantine import COUNTED_FOR, Aside, Quarantine
from app.accept.records import LARGE, Accepted, Arrival, Records
from app.core.errors import Transient, Unusable
from app.core.manifest import Receipt, format_time
from app.core.names import Kind, spool_name
from app.core.prediction import parse
from app.disk import fsync, lack_of_room, make_folder

WRITERS = 16
"""Deliveries that are written at the same time: the disk syncs many for little more than the price of one."""

ABANDONED = 600.0
"""Seconds after which a draft that is still there belongs to a process that died."""

RETRY_AFTER = 10

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS})
"""What disks say that know no second names of a file."""

_DELIVERY = ".delivery"
_DRAFT = ".part"
_DAMAGED = ".damaged"

log = logging.getLogger("outkeep.spool")


@dataclass(frozen=True)
class Spooled:
    """A verified terminal delivery; all that is needed to accept it later as if it came now."""

    kind: Kind
    body: bytes
    receipt: Receipt


@dataclass(frozen=True)
class Waiting:
    """A file of the spool; `size` in bytes."""

    path: Path
    size: int
    received_at: datetime


class Spool:
    """A folder of waiting deliveries, which several processes may share. Methods block, save `keep`."""

    def __init__(self, folder: Path, *, disk_floor: int | None) -> None:
        """Use `folder`; `disk_floor` (bytes) is what downloads leave free; the spool may use half of that."""
        self.folder = folder
        self._disk_floor = disk_floor
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="spool")

    def close(self) -> None:
        """Wait for what is being written; nothing can be kept any more."""
        self._writers.shutdown()

    async def keep(self, prediction_id: str, spooled: Spooled) -> None:
        """Return once the delivery is on disk.

        Raises `Transient` (`spool_full`, `spool_unusable`) when it cannot be put there.
        """
        await asyncio.get_running_loop().run_in_executor(self._writers, self._keep, prediction_id, spooled)

    def waiting(self) -> list[Waiting]:
        """What waits, oldest first; raises `OSError` when the folder cannot be read."""
        return sorted(self._scan(_DELIVERY), key=lambda one: (one.received_at, one.path.name))

    def damaged(self) -> int:
        """How many files are set aside; raises `OSError` like `waiting`."""
        return sum(1 for _ in self._scan(_DAMAGED))

    def read(self, path: Path) -> Spooled | None:
        """A delivery that waits; None when another process took it, or it cannot be read, or is now aside."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("a delivery in the spool cannot be read; it waits on", extra={"reason": str(error)})
            return None
        try:
            return _decode(content)
        except (ValueError, KeyError, TypeError) as error:
            log.error(  # noqa: TRY400
                "a delivery in the spool is damaged and cannot be used; it is set aside",
                extra={"file": str(path.with_suffix(_DAMAGED)), "reason": repr(error)},
            )
            self.set_aside(path)
            return None

    def set_aside(self, path: Path) -> None:
        """Keep a file that cannot be used out of the way of the others."""
        with suppress(OSError):
            path.rename(path.with_suffix(_DAMAGED))

    def remove(self, path: Path) -> None:
        """Forget a delivery that was fed back; raises `OSError`."""
        path.unlink(missing_ok=True)

    def tidy(self, now: float) -> None:
        """Remove the drafts of processes that died while they wrote: nobody was told 2xx for them.

        `now` is the Unix time. A draft bears the time of this host first, then that of its receipt; where
        the two clocks differ, both must say that it is old. One that cannot be removed harms nobody.
        """
        now = min(now, time.time())
        for draft in self._scan(_DRAFT):
            if now - draft.received_at.timestamp() > ABANDONED:
                with suppress(OSError):
                    draft.path.unlink()

    def trouble(self) -> str | None:
        """Why a delivery could not be written now; None when it could."""
        try:
            self._require_room(0)
            with tempfile.TemporaryFile(dir=self.folder):
                return None
        except Transient as error:
            return error.message
        except OSError as error:
            return f"cannot write to {self.folder}: {error.strerror or error}"

    def _keep(self, prediction_id: str, spooled: Spooled) -> None:
        content = _encode(spooled)
        webhook_id = (spooled.receipt.webhook_id or "").encode()
        digest = hashlib.sha256(webhook_id + b"\n" + spooled.body).hexdigest()[:24]
        try:
            self._require_room(len(content))
            self._put(spool_name(spooled.kind, prediction_id, digest), content, spooled.receipt.received_at)
        except OSError as error:
            message = f"cannot write to {self.folder}: {error.strerror or error}"
            raise Transient("spool_unusable", message, retry_after=RETRY_AFTER) from error

    def _require_room(self, size: int) -> None:
        make_folder(self.folder, mode=0o700)
        full = lack_of_room(self.folder, size, self._disk_floor)
        if full is not None:
            raise Transient("spool_full", full, retry_after=RETRY_AFTER)

    def _put(self, name: str, content: bytes, received_at: datetime) -> None:
        descriptor, draft = tempfile.mkstemp(suffix=_DRAFT, dir=self.folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                seconds = received_at.timestamp()
                os.utime(file.fileno(), (seconds, seconds))
                os.fsync(file.fileno())
            _place(Path(draft), self.folder / name)
        finally:
            with suppress(FileNotFoundError):
                Path(draft).unlink()
        # Also for what was there before: the process that wrote it may have died before this step.
        fsync(self.folder)

    def _scan(self, suffix: str) -> Iterator[Waiting]:
        try:
            entries = os.scandir(self.folder)
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                if entry.name.endswith(suffix):
                    with suppress(FileNotFoundError):
                        stat = entry.stat()
                        changed = datetime.fromtimestamp(stat.st_mtime, UTC)
                        yield Waiting(Path(entry.path), stat.st_size, changed)


def _place(draft: Path, target: Path) -> None:
    """Give a draft its name, unless that is taken: the first receipt stays in its place."""
    try:
        target.hardlink_to(draft)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if not target.exists():
            draft.rename(target)


def _encode(spooled: Spooled) -> bytes:
    receipt = spooled.receipt
    head = {
        "kind": spooled.kind,
        "size": len(spooled.body),
        "sha256": hashlib.sha256(spooled.body).hexdigest(),
        "received_at": format_time(receipt.received_at),
        "webhook_id": receipt.webhook_id,
        "source": receipt.source,
        "query": dict(receipt.query),
        "context": receipt.context,
        "parent": receipt.parent,
    }
    return json.dumps(head).encode() + b"\n" + spooled.body


def _decode(content: bytes) -> Spooled:
    first, _, body = content.partition(b"\n")
    head = json.loads(first)
    if len(body) != head["size"] or hashlib.sha256(body).hexdigest() != head["sha256"]:
        raise ValueError("the body is not what was written")
    receipt = Receipt(
        received_at=datetime.fromisoformat(head["received_at"]),
        webhook_id=head["webhook_id"],
        source=head["source"],
        query=head["query"],
        context=head["context"],
        parent=head["parent"],
    )
    return Spooled(kind=Kind(head["kind"]), body=body, receipt=receipt)


INTERVAL = 1.0
"""Seconds between two looks at the spool."""

TIMEOUT = 5.0
"""Seconds that one call to Redis may take: nobody waits for it but our own shutdown."""

MAX_BATCH = 64
MAX_BATCH_BYTES = 8 << 20
MAX_FAILURES = 4
"""Failures in a row after which Redis is taken for unwell; fewer may be the fault of single deliveries."""


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
                return
            facts = {"count": fed, "left": len(waiting) - number}
            log.info("deliveries from the spool are accepted", extra=facts)

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
        return make_arrival(prediction, spooled.body, spooled.receipt, self._clock())


def _next_batch(waiting: Sequence[Waiting], limit: int) -> Sequence[Waiting]:
    """The first ones, `limit` or `MAX_BATCH_BYTES` at most, but at least one."""
    size = 0
    for count, one in enumerate(waiting[:limit]):
        size += one.size
        if count and size > MAX_BATCH_BYTES:
            return waiting[:count]
    return waiting[:limit]
