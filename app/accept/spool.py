"""Where verified deliveries wait on disk while Redis is away: one synced file each, fed back oldest first.

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
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from app.core.errors import Transient
from app.core.manifest import Receipt, format_time
from app.core.names import Kind, spool_name
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

    def abandoned(self, now: float) -> Iterator[Path]:
        """The drafts of processes that died while they wrote: nobody was told 2xx for them.

        `now` is the Unix time. A draft bears the time of this host first, then that of its receipt; where
        the two clocks differ, both must say that it is old.
        """
        now = min(now, time.time())
        for draft in self._scan(_DRAFT):
            if now - draft.received_at.timestamp() > ABANDONED:
                yield draft.path

    def tidy(self, now: float) -> None:
        """Remove abandoned drafts; where that is not possible, they harm nobody."""
        for path in self.abandoned(now):
            with suppress(OSError):
                path.unlink()

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
