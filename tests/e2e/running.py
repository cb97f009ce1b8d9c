"""A real `outkeep up` on a folder and a port of its own: started, watched, stopped, killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import httpx
import psutil
from redis import Redis

from app.core.signature import generate_secret
from app.maintain.backlog import ENDED
from app.receive.listening import free_port
from app.valkey.server import running_url
from tests.e2e.canary import SECRET_SETTINGS, leaks
from tests.serving import PLAIN

PATIENCE = 120.0
OUTKEEP = str(Path(sys.executable).with_name("outkeep"))
PARTS = {
    "app.cli serve": "receiver",
    "workers persist": "worker",  # notify, too
    "workers handle": "handle",
}
_NOT_INHERITED = ("OUTKEEP_", "REPLICATE_", "REDIS_URL", "PORT", "HOST", "LOG_")


def until(holds: Callable[[], object], what: str, *, seconds: float = PATIENCE) -> None:
    """Wait until `holds()` is true; fail with `what` after `seconds`. Looking takes a third of it."""
    deadline = time.monotonic() + seconds
    began = time.monotonic()
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(max(0.02, min(0.5, 2 * (time.monotonic() - began))))
        began = time.monotonic()


class Up:
    """One folder with `data`, `outkeep.toml` and the output of `up` in `log`; `up` may be started anew on it.

    `url` is the receiver's, `hook` the one of its endpoint for predictions, `secret` what deliveries are
    signed with, `environment` all that the processes get.
    """

    def __init__(
        self, folder: Path, *, handlers: str = "", settings: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.outputs = self.data / "outputs"
        self.log = folder / "up.log"
        self.secret = generate_secret(os.urandom(32))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.hook = f"{self.url}/webhooks/replicate"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        self.environment = inherited | {
            "HOST": "127.0.0.1",
            "LOG_FORMAT": "json",
            "OUTKEEP_DATA": str(self.data),
            "OUTKEEP_DISK_FLOOR": "0",
            "OUTKEEP_NOTIFY_PRIVATE": "true",
            "PORT": str(port),
            "REPLICATE_WEBHOOK_SECRET": self.secret,
            **(settings or {}),
        }
        if handlers:
            # The working directory is `folder`, so this file is found without a setting.
            (folder / "outkeep.toml").write_text(handlers)
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self) -> "subprocess.Popen[bytes]":
        """Start `outkeep up` in a process group of its own and return at once."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [OUTKEEP, "up"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        return self.process

    def revive(self) -> None:
        """Launch it again if it has ended, as whoever runs it would."""
        if self.has_ended():
            self.launch()

    def start(self) -> None:
        """Launch it, and wait until it receives and both workers are registered."""
        self.launch()
        until(lambda: self.has_ended() or self.is_ready(), f"up is ready\n{self.text()}")
        assert not self.has_ended(), (
            f"up ended with {self.process and self.process.returncode}\n{self.text()}"
        )

    def is_ready(self) -> bool:
        """Whether `/readyz` answers 200 and misses no worker."""
        try:
            answer = PLAIN.get(f"{self.url}/readyz", timeout=5)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200 and "warn workers" not in answer.text

    def text(self) -> str:
        """What `up` and its children have printed."""
        return self.log.read_text() if self.log.exists() else ""

    def redis(self) -> Redis:
        """A client of the embedded server, or of `REDIS_URL`."""
        url = self.environment.get("REDIS_URL") or running_url(self.data)
        assert url is not None, "no Redis runs"
        return Redis.from_url(url)

    def processes(self) -> list[psutil.Process]:
        """Every living process that was started for this folder, orphans included."""
        return processes_of(self.data)

    def pids(self) -> dict[str, int]:
        """Name → process id of `up`, `valkey`, `receiver` and the workers, as far as they live."""
        found = {}
        for process in self.processes():
            with suppress(psutil.Error):
                found[process.pid] = (_name(process), process.ppid())
        # Between its fork and its program a child bears the name of its parent, and a work-horse always does.
        return {name: pid for pid, (name, parent) in found.items() if found.get(parent, ("",))[0] != name}

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask `up` to stop; its exit code, once it has ended."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def kill(self, name: str = "up") -> int:
        """`kill -9` one process by name; its pid."""
        pid = self.pids()[name]
        os.kill(pid, signal.SIGKILL)
        if name == "up":
            assert self.process is not None
            self.process.wait(PATIENCE)
        return pid

    def clear(self) -> None:
        """End whatever is left, by force."""
        kill_all(self.data)
        if self.process is not None:
            self.process.wait(PATIENCE)

    def has_ended(self) -> bool:
        """Whether the process that `launch` started has ended."""
        return self.process is not None and self.process.poll() is not None


@contextmanager
def running_up(
    folder: Path, *, handlers: str = "", settings: Mapping[str, str] | None = None
) -> Iterator[Up]:
    """Run `outkeep up` on `folder` until the end of the block; nothing is left of it then.

    `handlers` is the text of a handlers file (see `Recorder.handler`), `settings` are added to those of `Up`.
    """
    up = Up(folder, handlers=handlers, settings=settings)
    try:
        up.start()
        yield up
        if up.process is not None and up.process.poll() is None:
            up.stop()
        require_no_secret(up)
    finally:
        up.clear()


def unfinished(redis: Redis, *queues: str) -> list[str]:
    """The jobs of these queues that wait or run, as they say themselves: RQ moves them from list to list in
    two steps, and in between one stands in none."""
    while True:
        keys = cast(list[bytes], redis.keys("rq:job:*"))
        with redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hmget(key, "origin", "status")
            found = pipeline.execute()
        wanted = {name.encode() for name in queues}
        left = [
            key.decode()
            for key, (origin, status) in zip(keys, found, strict=True)
            if origin in wanted and status is not None and status.decode() not in ENDED
        ]
        # What ended while we looked may have made another one before.
        if left or set(cast(list[bytes], redis.keys("rq:job:*"))) <= set(keys):
            return left


def require_no_secret(up: Up) -> None:
    """Whatever a test is about: no secret that it gave away stands in the log."""
    secrets = {up.environment[name] for name in SECRET_SETTINGS if name in up.environment}
    key_file = up.data / "secret.key"
    if key_file.exists():
        secrets.add(key_file.read_text())
    assert leaks(secrets, [("the log", up.log.read_bytes())]) == []


def processes_of(data: Path) -> list[psutil.Process]:
    """Every living process that was started with `data` as its `OUTKEEP_DATA`, orphans included."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and _belongs(process, data):
                found.append(process)
    return found


def kill_all(data: Path) -> None:
    """`kill -9` what `processes_of` finds until nothing is left."""

    def is_clear() -> bool:
        found = processes_of(data)
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        return not found

    until(is_clear, f"no process of {data} is left")


def _belongs(process: psutil.Process, data: Path) -> bool:
    if process.name().startswith("valkey"):  # it writes its title over its environment
        return Path(process.cwd()) == (data / "valkey").resolve()
    return process.environ().get("OUTKEEP_DATA") == str(data)


def _name(process: psutil.Process) -> str:
    if process.name().startswith("valkey"):
        return "valkey"
    words = process.cmdline()
    if OUTKEEP in words:
        return words[words.index(OUTKEEP) + 1]
    module = " ".join(words[words.index("-m") + 1 :][:2]) if "-m" in words else ""
    return PARTS.get(module, process.name())
