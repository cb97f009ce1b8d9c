"""The loss test: traffic, faults until all have struck, recovery, and the balance of it."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from app.simulator import Simulator
from tests.e2e.balance import FAULTS, Balance, balance
from tests.e2e.file_host import FileHost, file_host
from tests.e2e.loss.faults import SEPARATE, VICTIMS, Fault, Kind, Victims, draw
from tests.e2e.recorder import Recorder, Slow, recorder
from tests.e2e.running import Up, running_up, until
from tests.e2e.traffic import AGAIN, NEW, RETRY_DELAYS, TWICE, Traffic

RATE = 10.0
"""Deliveries a second: so many that work is always in flight, so few that two cores keep up."""

FROZEN = 3.0

Running = Callable[..., AbstractContextManager[Up]]
"""`running_up` or `running_separately`."""


@dataclass(frozen=True)
class Struck:
    """One fault as it happened: how many downloads and notifications were on their way."""

    fault: Fault
    downloads: int
    notifications: int


@dataclass
class Strikes:
    """Strikes one fault after the other, and starts `up` again wherever it has ended."""

    up: Up
    host: FileHost
    slow: Slow
    victims: Victims
    struck: list[Struck] = field(default_factory=list)

    def run(self, faults: Sequence[Fault]) -> None:
        """Carry out all of them at their times."""
        for fault in faults:
            threading.Event().wait(fault.pause)
            self._await(fault)
            self._strike(fault)

    def recover(self) -> None:
        """Wait until all serve again."""
        # A killed worker stays registered for a while, so that readiness alone would not miss it.
        names = {name for names in self.victims.values() for name in names} - {"up"}
        until(lambda: all(map(self._lives, names)) and self.up.is_ready(), "all serve again")

    def _await(self, fault: Fault) -> None:
        until(
            lambda: self._lives(fault.victim) and (not fault.lurks or self._in_flight()),
            f"{fault.victim} runs" + (" and work is in flight" if fault.lurks else ""),
        )

    def _in_flight(self) -> bool:
        return self.host.open + self.slow.open > 0

    def _lives(self, name: str) -> bool:
        """Whether a process lives; what nobody else starts again is started, as whoever runs it would."""
        self.up.revive()
        return name in self.up.pids()

    def _strike(self, fault: Fault) -> None:
        struck = Struck(fault, self.host.open, self.slow.open)
        with suppress(KeyError, ProcessLookupError):  # it ended by itself just now: another try
            if fault.kind is Kind.FROZEN:
                self._freeze(self.up.pids()[fault.victim])
            else:
                self.up.kill(fault.victim)
            self.struck.append(struck)
            return
        self._await(fault)
        self._strike(fault)

    def _freeze(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        threading.Event().wait(FROZEN)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@dataclass(frozen=True)
class Outcome:
    """What happened and what came of it."""

    seed: int
    deliveries: dict[str, int]
    struck: Sequence[Struck]
    balance: Balance

    def figures(self) -> dict[str, int]:
        """All counts by name: what was done, what came of it, and what should not be."""
        kinds = Counter(str(one.fault.kind) for one in self.struck)
        found = self.balance
        return {
            "faults": len(self.struck),
            **{str(kind): kinds[kind] for kind in Kind},
            "faults that met work in flight": sum(
                one.downloads + one.notifications > 0 for one in self.struck
            ),
            **{f"deliveries {way}": self.deliveries.get(way, 0) for way in (NEW, AGAIN, TWICE)},
            "predictions sent": found.sent,
            "acknowledged": found.acknowledged,
            "stored": found.stored,
            "files": found.files,
            "notifications": found.notifications,
            "half-written files left": found.half_written,
            **{fault: len(found.wrong.get(fault, [])) for fault in FAULTS},
        }


def report(title: str, figures: Mapping[str, int]) -> str:
    """The figures for people, and which kinds of fault were not exercised."""
    missing = ", ".join(kind for kind in Kind if not figures[kind]) or "none"
    counts = ", ".join(f"{name} {count}" for name, count in figures.items())
    return f"\n{title}: {counts}\nnot exercised: {missing}"


@dataclass(frozen=True)
class Stage:
    """A running `up`, endless traffic to it, and slow files and handlers around it."""

    up: Up
    traffic: Traffic
    host: FileHost
    slow: Slow
    downstream: Recorder

    def balance(self) -> Balance:
        """The balance, after which `up` is stopped and nothing of it runs any more."""
        found = balance(self.traffic, self.up, self.host, self.downstream)
        assert self.up.stop() == 0
        assert self.up.processes() == []
        return found


@contextmanager
def stage(folder: Path, *, seed: int, rate: float, running: Running = running_up) -> Iterator[Stage]:
    """Set all up on an empty folder; `rate` is deliveries a second, `running` how it is run."""
    slow = Slow()
    with ExitStack() as stack:
        host = stack.enter_context(file_host())
        simulator = stack.enter_context(Simulator(retry_delays=RETRY_DELAYS))
        downstream = stack.enter_context(recorder(answer=slow))
        settings = {"REPLICATE_WEBHOOK_SECRET": simulator.secret, "OUTKEEP_OUTPUT_HOSTS": host.url}
        up = stack.enter_context(running(folder, handlers=downstream.handler(), settings=settings))
        traffic = Traffic(None, seed=seed, host=host, simulator=simulator, up=up, repeats=True, rate=rate)
        yield Stage(up, traffic, host, slow, downstream)


def run(folder: Path, *, seed: int, kills: int, running: Running = running_up) -> Outcome:
    """Play the story on an empty folder; `up` is among the victims when it is what runs all."""
    victims = VICTIMS if running is running_up else SEPARATE
    with stage(folder, seed=seed, rate=RATE, running=running) as set_up:
        strikes = Strikes(set_up.up, set_up.host, set_up.slow, victims)
        with set_up.traffic.flowing():
            strikes.run(draw(seed, kills, victims))
        strikes.recover()
        found = set_up.balance()
    return Outcome(seed, dict(set_up.traffic.deliveries), strikes.struck, found)
