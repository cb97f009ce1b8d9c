"""The trace that a running embedded Valkey leaves in its data folder, and where its socket lies.

`<data>/valkey.json` holds `{"data", "socket", "pid"}`. Other commands find the server by it; a new start
finds what a killed one left running.
"""

import hashlib
import json
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from app.core.errors import Permanent
from app.valkey.processes import works_in

PROGRAM = "valkey-server"
RECORD = "valkey.json"
FOLDER = "valkey"

LONGEST_SOCKET = 100
"""Bytes. The kernel's limit is 108 on Linux and 104 on macOS; longer paths cannot be connected to."""


@dataclass(frozen=True)
class Trace:
    """One server: the data folder it was started for (absolute), its socket, its pid."""

    data: str
    socket: str
    pid: int


def read(data: Path) -> Trace | None:
    """What stands in the record of `data`; None when there is none or it makes no sense."""
    try:
        found = json.loads((data / RECORD).read_bytes())
        return Trace(data=str(found["data"]), socket=str(found["socket"]), pid=int(found["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(data: Path, trace: Trace) -> None:
    """Replace the record in one step, readable by us only. Raises OSError."""
    descriptor, name = tempfile.mkstemp(prefix=f".{RECORD}.", dir=data)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(trace), file)
        Path(name).replace(data / RECORD)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def forget(data: Path, socket: Path) -> None:
    """Remove record, socket and the socket's folder, as far as they are there."""
    with suppress(OSError):
        (data / RECORD).unlink(missing_ok=True)
    with suppress(OSError):
        socket.unlink(missing_ok=True)
    with suppress(OSError):
        socket.parent.rmdir()


def lives(data: Path, pid: int) -> bool:
    """Whether `pid` is a Valkey that works in this very data folder."""
    return works_in(pid, data / FOLDER, program=PROGRAM)


def socket_for(data: Path) -> Path:
    """A short socket path for `data` (absolute): the recorded one if usable, else one made from its name.

    A copied data folder brings the record of the original along, hence the comparison. Raises Permanent
    `no_runtime_folder`.
    """
    trace = read(data)
    if trace is not None and trace.data == str(data) and _usable(Path(trace.socket).parent):
        return Path(trace.socket)
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    for parent in _runtime_folders():
        folder = parent / f"outkeep-{os.geteuid()}-{digest}"
        if len(os.fsencode(folder / "s")) < LONGEST_SOCKET and _usable(folder):
            return folder / "s"
    message = "found no short writable folder for Valkey's socket; set XDG_RUNTIME_DIR or TMPDIR to one"
    raise Permanent("no_runtime_folder", message)


def own_folder(folder: Path) -> None:
    """Make the socket's folder, for us alone. Raises OSError, also when the folder is someone else's."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise FileExistsError(17, "it belongs to someone else", str(folder))
    folder.chmod(0o700)


def _runtime_folders() -> list[Path]:
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    folders = [Path(named)] if named.startswith("/") else []
    return [*folders, Path(tempfile.gettempdir()).absolute(), Path("/tmp")]  # noqa: S108 - the folder below is checked


def _usable(folder: Path) -> bool:
    """Whether `folder` is ours already, or could be made."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return folder.parent.is_dir() and os.access(folder.parent, os.W_OK | os.X_OK)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
