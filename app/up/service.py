"""What the supervisor keeps running: anything that can be launched, watched and ended."""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from app.core.errors import Permanent
from app.valkey.processes import describe_exit, members, signal_session


class Service(Protocol):
    """A child process (`ChildProcess`) or the embedded Valkey (`app.valkey.server.Embedded`)."""

    @property
    def name(self) -> str:
        """How events call it."""

    def launch(self) -> None:
        """Start it, again if it has ended. Raises Permanent when it cannot be started."""

    def ready(self) -> bool:
        """Whether it does its work already."""

    def poll(self) -> int | None:
        """The exit code (negative: a signal) once it has ended."""

    def outcome(self) -> str:
        """Why it ended, in one line."""

    def ask(self) -> None:
        """Ask it to stop: once, for a second request means haste to some programs."""

    def settle(self) -> bool:
        """Clean up after what has ended; whether it and everything it started are gone."""

    def kill(self) -> None:
        """End it and everything it started, now."""


@dataclass(frozen=True)
class Child:
    """A program to keep running.

    `environment` is all that it gets, not an addition. `ready`, if given, is asked a few times a second until
    it says yes; it must answer quickly.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    ready: Callable[[], bool] | None = None


class ChildProcess:
    """Runs a `Child` in a session of its own, with a lifeline (see `app.up.lifeline`) as standard input.

    The session keeps Ctrl-C in the terminal from reaching it, and tells which processes it left behind.
    """

    def __init__(self, child: Child) -> None:
        self.child = child
        self.name = child.name
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._code: int | None = None
        self._asked = False
        self._left_behind: set[int] = set()

    def launch(self) -> None:
        """Start the program. Raises Permanent `child_unusable` when there is none to run."""
        self.settle()
        reading, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603
                self.child.command, env=dict(self.child.environment), stdin=reading, start_new_session=True
            )
            self._code = None
        except OSError as error:
            self._cut()
            message = f"cannot run {self.child.command[0]} for {self.name}: {error.strerror or error}"
            raise Permanent("child_unusable", message) from error
        finally:
            os.close(reading)

    def ready(self) -> bool:
        """Whether it runs and its probe, if it has one, says yes."""
        return self.poll() is None and (self.child.ready is None or self.child.ready())

    def poll(self) -> int | None:
        """The exit code (negative: a signal) once it has ended."""
        if self._process is not None:
            self._code = self._process.poll()
        return self._code

    def outcome(self) -> str:
        """Exit code or signal, in words."""
        code = self.poll()
        return describe_exit(code) if code is not None else "running"

    def ask(self) -> None:
        """SIGTERM to the program alone: a worker passes it on to its own children as it sees fit."""
        self._asked = True
        if self._process is not None and self.poll() is None:
            self._process.terminate()
        for session in self._left_behind:
            signal_session(session, signal.SIGTERM)

    def settle(self) -> bool:
        """Note what an ended program left behind; whether nothing lives any more.

        A work-horse may finish its job without its worker, and is asked to stop only when we stop.
        """
        if self._process is not None and self.poll() is not None:
            self._left_behind.add(self._process.pid)
            if self._asked:
                signal_session(self._process.pid, signal.SIGTERM)
            self._process = None
            self._cut()
        self._left_behind = {session for session in self._left_behind if members(session)}
        return self._process is None and not self._left_behind

    def kill(self) -> None:
        """SIGKILL to every process of its sessions."""
        running = {self._process.pid} if self._process is not None else set()
        for session in self._left_behind | running:
            signal_session(session, signal.SIGKILL)

    def _cut(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
