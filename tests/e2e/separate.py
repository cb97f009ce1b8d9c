"""Receiver, workers and Valkey as processes of their own, without `up`: who runs them starts them again."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests import forked
from tests.e2e.running import PATIENCE, Up, require_no_secret, until
from tests.own_valkey import OwnValkey, own_valkey

COMMANDS = {"receiver": ("serve",), "persist": ("work", "persist"), "notify": ("work", "notify")}
SECRET_KEY = "0123456789abcdef0123456789abcdef"


class Separate(Up):
    """The same folder, log and names as `Up`; there is no process `up`."""

    def __init__(
        self,
        folder: Path,
        valkey: OwnValkey,
        *,
        handlers: str = "",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        redis = {"REDIS_URL": valkey.url, "OUTKEEP_SECRET_KEY": SECRET_KEY}
        super().__init__(folder, handlers=handlers, settings={**(settings or {}), **redis})
        self._valkey = valkey
        self._parts: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all, and wait until it receives and both workers are registered."""
        self.revive()
        until(self.is_ready, f"all are ready\n{self.text()}")

    def revive(self) -> None:
        """Start again what has ended."""
        if self._valkey.pid is None:
            self._valkey.launch()
        for name, arguments in COMMANDS.items():
            if name not in self._parts or self._parts[name].poll() is not None:
                self._parts[name] = self._begin(arguments)

    def has_ended(self) -> bool:
        """Never as a whole."""
        return False

    def pids(self) -> dict[str, int]:
        """Name → process id of `valkey`, `receiver`, `persist` and `notify`, as far as they live."""
        found = {name: part.pid for name, part in self._parts.items() if part.poll() is None}
        return found if self._valkey.pid is None else {**found, "valkey": self._valkey.pid}

    def kill(self, name: str = "receiver") -> int:
        """`kill -9` one of them, and see its end, so that it counts as living no more; its pid."""
        pid = super().kill(name)
        if name in self._parts:
            self._parts[name].wait(PATIENCE)
        return pid

    def processes(self) -> list[psutil.Process]:
        """All of them but Valkey."""
        return [psutil.Process(part.pid) for part in self._parts.values() if part.poll() is None]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask all but Valkey to stop; the highest exit code, once they have ended."""
        for part in self._parts.values():
            part.send_signal(number)
        return max(abs(part.wait(PATIENCE)) for part in self._parts.values())

    def clear(self) -> None:
        """End whatever is left, by force."""
        for part in self._parts.values():
            part.kill()
            part.wait(PATIENCE)

    def _begin(self, arguments: tuple[str, ...]) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            return forked.Popen(
                [sys.executable, "-m", "app.cli", *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


@contextmanager
def running_separately(
    folder: Path, *, handlers: str = "", settings: Mapping[str, str] | None = None
) -> Iterator[Separate]:
    """Run all on `folder` until the end of the block; nothing is left of it then. As `running_up`."""
    with own_valkey() as valkey:
        valkey.launch()
        running = Separate(folder, valkey, handlers=handlers, settings=settings)
        try:
            running.start()
            yield running
            running.stop()
            require_no_secret(running)
        finally:
            running.clear()
