"""Find an embedded Valkey that runs: by its record in the data folder, its socket, its process.

`<data>/valkey.json` holds `{"data", "socket", "pid"}`. Other commands find the server by it; a new start
finds what a killed one left running.
"""

import hashlib
import json
import os
import re
import signal
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from socket import AF_UNIX
from socket import socket as new_socket
from urllib.parse import quote, unquote

from app.core.errors import Permanent
from app.valkey.processes import works_in

PROGRAM = "valkey-server"
RECORD = "valkey.json"
FOLDER = "valkey"

LONGEST_SOCKET = 100
"""Bytes. The kernel's limit is 108; longer paths cannot be connected to."""


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


PATIENCE = 30.0
"""Seconds a server gets to end by itself."""

TICK = 0.05


def socket_url(socket: Path) -> str:
    """The URL of a socket; odd characters are quoted, as redis-py expects."""
    return f"unix://{quote(str(socket))}"


def answer(url: str) -> str | None:
    """`ready` or `loading`; None when nobody answers within a second."""
    said = _ask(url, b"PING")
    if said is None or not said.startswith((b"+", b"-")):
        return None
    return "loading" if said.startswith(b"-LOADING") else "ready"


def pid_behind(url: str) -> int:
    """The pid that the server on `url` gives itself; 0 when nobody answers."""
    found = re.search(rb"^process_id:([0-9]{1,10})\r$", _ask(url, b"INFO server") or b"", re.MULTILINE)
    return int(found[1]) if found else 0


def end_orphan(data: Path, socket: Path) -> None:
    """End what an earlier process left running on `data`, and remove its traces.

    Only a process that is proven to be the Valkey of this folder is touched. Raises Permanent `valkey_stuck`
    when it cannot be ended, `socket_taken` when a stranger answers on `socket`.
    """
    trace = read(data)
    sockets = {socket, Path(trace.socket)} if trace else {socket}
    pids = {pid_behind(socket_url(path)) for path in sockets} | ({trace.pid} if trace else set())
    for pid in pids:
        if lives(data, pid):
            _end(data, pid)
            # The folder may have been renamed since, and the socket be named after the old one.
            if trace and pid == trace.pid:
                forget(data, Path(trace.socket))
    if answer(socket_url(socket)) is not None:
        raise Permanent(
            "socket_taken",
            f"another server answers on {socket}: stop it, or set XDG_RUNTIME_DIR to another folder",
        )
    forget(data, socket)


def wait_until(holds: Callable[[], bool], timeout: float) -> bool:
    """Whether `holds` came true within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(TICK)
    return True


def _end(data: Path, pid: int) -> None:
    """SIGTERM is Valkey's own graceful shutdown; force comes only after it was refused."""
    for number, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            # A stopped process takes the request only when it goes on.
            os.kill(pid, signal.SIGCONT)
        if wait_until(lambda: not lives(data, pid), patience):
            return
    raise Permanent("valkey_stuck", f"an old Valkey (pid {pid}) still runs on {data} and cannot be ended")


def _ask(url: str, command: bytes) -> bytes | None:
    """The whole answer to one command without arguments; None when there is none within a second.

    Without a client of Redis: loading that takes more time and memory than all else that `up` does.
    """
    with new_socket(AF_UNIX) as connection:
        connection.settimeout(1)
        try:
            connection.connect(unquote(url.removeprefix("unix://")))
            connection.sendall(command + b"\r\nQUIT\r\n")
            pieces = list(iter(lambda: connection.recv(1 << 16), b""))
        except OSError:
            return None
    return b"".join(pieces) or None
