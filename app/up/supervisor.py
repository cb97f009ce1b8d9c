"""Start children, restart those that end, and stop all of them in order."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from app.core.errors import Permanent
from app.up.wakeups import Wakeups
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
        """Note the sessions of a program that has ended; whether none of its processes lives.

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


FIRST_DELAY = 0.2
LONGEST_DELAY = 10.0
STEADY = 30.0
"""Seconds of life after which a service counts as healthy again."""

PATIENCE = 5.0
"""Seconds that children wait for the foundation: a large Valkey loads for minutes, deliveries come now."""

TICK = 0.2
LAST_WAIT = 5.0
CONFIGURATION = 2
"""Exit code of a program that refuses its settings."""


class Change(StrEnum):
    """What `on_change` is told about a service."""

    STARTED = "started"
    READY = "ready"
    EXITED = "exited"
    REFUSED = "refused"
    STOPPING = "stopping"
    KILLED = "killed"
    STOPPED = "stopped"


@dataclass
class _Watched:
    service: Service
    due: float | None = 0.0
    """When to launch it; None while it runs."""
    since: float = 0.0
    delay: float = 0.0
    launches: int = 0
    ready: bool = False


def next_delay(last: float, *, lived: float) -> float:
    """Seconds to wait before the next start of a service that waited `last` and then ran for `lived`."""
    if lived >= STEADY or not last:
        return FIRST_DELAY
    return min(2 * last, LONGEST_DELAY)


class Supervisor:
    """Runs `children` on top of `foundation`, which starts before them and stops after all have ended.

    `on_change(name, change, detail)` is told what happens to whom, in the thread of `run`; an OSError of it
    is ignored. `grace` is how long services may take to stop, in seconds.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        foundation: Sequence[Service] = (),
        grace: float = 40.0,
        on_change: Callable[[str, Change, str], None],
    ) -> None:
        self._children = [_Watched(ChildProcess(child)) for child in children]
        self._foundation = [_Watched(service) for service in foundation]
        self._grace = grace
        self._on_change = on_change
        self._wakeups = Wakeups()
        self._stopped = False
        self._refused = False
        self._forced = False

    def run(self) -> int:
        """Run until SIGTERM, SIGINT, SIGHUP or `stop`; main thread only, once.

        Gives 0, or 1 when something had to be killed at the end (a later second signal asks for it), or 2
        when a child refused its configuration at its first start. Raises Permanent when a service cannot be
        started for the first time. Whatever happens, no process is left.
        """
        with self._wakeups:
            try:
                self._watch()
            finally:
                try:
                    self._end(self._children)
                finally:
                    self._end(self._foundation)
        return CONFIGURATION if self._refused else int(self._forced)

    def stop(self) -> None:
        """Make `run` end; from any thread."""
        self._stopped = True
        self._wakeups.wake()

    def _watch(self) -> None:
        patient_until = time.monotonic() + PATIENCE
        waiting = True
        while not (self._stopped or self._refused or self._wakeups.requested):
            now = time.monotonic()
            for watched in self._foundation:
                self._attend(watched, now)
            waiting = waiting and now < patient_until and not all(each.ready for each in self._foundation)
            if not waiting:
                for watched in self._children:
                    self._attend(watched, now)
            services = self._foundation if waiting else [*self._foundation, *self._children]
            now = time.monotonic()
            dues = [watched.due - now for watched in services if watched.due is not None]
            self._wakeups.wait(min([TICK / 4 if waiting else TICK, *dues]))

    def _attend(self, watched: _Watched, now: float) -> None:
        if watched.due is not None:
            if now >= watched.due:
                self._launch(watched)
        elif (code := watched.service.poll()) is not None:
            self._ended(watched, code)
        elif not watched.ready and watched.service.ready():
            watched.ready = True
            self._tell(watched, Change.READY, "")

    def _launch(self, watched: _Watched) -> None:
        watched.launches += 1
        watched.since = time.monotonic()
        try:
            watched.service.launch()
        except Permanent as error:
            if watched.launches == 1:
                raise
            self._again(watched, Change.REFUSED, error.message)
            return
        watched.due = None
        watched.ready = False
        self._tell(watched, Change.STARTED, "")

    def _ended(self, watched: _Watched, code: int) -> None:
        first = watched.launches == 1
        if first and code == CONFIGURATION:
            self._refused = True
            self._tell(watched, Change.EXITED, watched.service.outcome())
        elif first and code > 0 and watched in self._foundation and not watched.ready:
            name, outcome = watched.service.name, watched.service.outcome()
            raise Permanent("foundation_failed", f"{name} did not start: {outcome}")
        else:
            self._again(watched, Change.EXITED, watched.service.outcome())

    def _again(self, watched: _Watched, change: Change, reason: str) -> None:
        now = time.monotonic()
        watched.delay = next_delay(watched.delay, lived=now - watched.since)
        watched.due = now + watched.delay
        self._tell(watched, change, f"{reason}; starts again in {watched.delay:g} s")

    def _end(self, group: Sequence[_Watched]) -> None:
        """Stop what was launched of `group`, last first, all at the same time."""
        left = [watched for watched in reversed(group) if watched.launches]
        for watched in left:
            self._tell(watched, Change.STOPPING, "")
            watched.service.ask()
        left = self._settle(left, time.monotonic() + self._grace)
        for watched in left:
            self._forced = True
            self._tell(watched, Change.KILLED, "")
        deadline = time.monotonic() + LAST_WAIT
        while left and time.monotonic() < deadline:
            # More than once: what a process started in the meantime was not in the list.
            for watched in left:
                watched.service.kill()
            self._wakeups.wait(TICK / 4)
            left = self._settle(left, deadline=0)

    def _settle(self, group: Sequence[_Watched], deadline: float) -> list[_Watched]:
        """Those of `group` that are not gone at `deadline`, or when a second signal asks for haste."""
        left = list(group)
        while True:
            for watched in [each for each in left if each.service.settle()]:
                left.remove(watched)
                self._tell(watched, Change.STOPPED, "")
            if not left or time.monotonic() > deadline or self._wakeups.hasty:
                return left
            self._wakeups.wait(TICK / 4)

    def _tell(self, watched: _Watched, change: Change, detail: str) -> None:
        # A closed terminal must not keep us from ending what we started.
        with suppress(OSError):
            self._on_change(watched.service.name, change, detail)
