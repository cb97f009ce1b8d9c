"""A Valkey that belongs to one test, so that it can be stopped, killed, filled up and started again."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError
from redis.retry import Retry

from app.valkey.server import program
from tests.receive.web import wait_until
from tests.wrong_clock import WrongClock

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")


WEAK = (
    ("appendonly", "no", "appendonly is no, not yes: a restart of Redis loses"),
    ("appendfsync", "everysec", "appendfsync is everysec, not always: a crash"),
    ("no-appendfsync-on-rewrite", "yes", "no-appendfsync-on-rewrite is yes, not no: a crash"),
    ("maxmemory-policy", "allkeys-lru", "maxmemory-policy is allkeys-lru, not noeviction"),
)
"""Options with which it may lose something, and how what is said of that begins."""


class OwnValkey:
    """One server on a socket, with its data in `folder`."""

    def __init__(self, folder: Path, host: WrongClock | None) -> None:
        self.url = f"unix://{folder}/s"
        self.redis = Redis.from_url(self.url, socket_timeout=30, retry=Retry(NoBackoff(), 0))
        self.folder = folder
        self._environment = os.environ | (host.environment if host else {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id while it lives."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self, *options: str) -> None:
        """Start it, durable unless `options` say otherwise, and wait until it answers."""
        self.launch(*options)
        wait_until(lambda: self.answers() or self.pid is None)
        assert self.pid is not None, (self.folder / "log").read_text()[-1000:]

    def launch(self, *options: str) -> None:
        """Start it without waiting."""
        command = [str(program()), "--port", "0", "--unixsocket", f"{self.folder}/s", "--save", ""]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--dir", str(self.folder), *DURABLE, *options],
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def answers(self) -> bool:
        """Whether it speaks, be it to ask for a password."""
        try:
            return bool(self.redis.ping())
        except AuthenticationError:
            return True
        except RedisError:
            return False

    def is_loading(self) -> bool:
        """Whether it refuses because it still reads its data."""
        try:
            self.redis.ping()
        except BusyLoadingError:
            return True
        except RedisError:
            pass
        return False

    def narrow(self, *forbidden: str) -> str:
        """The URL for a user who may do everything but these commands."""
        commands = [f"-{command}" for command in forbidden]
        self.redis.acl_setuser("app", enabled=True, passwords=["+secret"], keys=["*"], channels=["*"],
                               categories=["+@all"], commands=commands)  # fmt: skip
        return self.url.replace("unix://", "unix://app:secret@")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`, unless it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def own_valkey(host: WrongClock | None = None) -> Iterator[OwnValkey]:
    """A server that is not started yet; it is gone at the end. It goes by the clock of `host`."""
    with tempfile.TemporaryDirectory(prefix="valkey-") as folder:
        server = OwnValkey(Path(folder), host)
        try:
            yield server
        finally:
            server.kill()
            server.redis.close()
