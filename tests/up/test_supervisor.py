"""A real supervisor process with real children, killed in every way."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from redis import Redis

from app.core.errors import Permanent
from app.up.everything import claim
from app.up.lifeline import watch
from app.up.supervisor import LONGEST_DELAY, STEADY, Change, Child, Supervisor, next_delay
from tests import forked

SUPERVISOR = """
import json, os, sys
from pathlib import Path
from app.up.everything import claim
from app.core.errors import Permanent
from app.valkey.server import Embedded
from app.up.supervisor import Child
from app.up.supervisor import Supervisor

plan = json.loads(sys.argv[1])
children = [
    Child(name, (sys.executable, "-c", text), dict(os.environ)) for name, text in plan["children"].items()
]
foundation = [Embedded(Path(plan["data"]))] if plan["data"] else []
tell = lambda *event: os.write(1, json.dumps(event).encode() + b"\\n")
try:
    with claim(Path(plan["lock"])):
        sys.exit(Supervisor(children, foundation=foundation, grace=plan["grace"], on_change=tell).run())
except Permanent as error:
    tell("", "permanent", error.message)
    sys.exit(1)
"""

PREAMBLE = """
import json, os, signal, subprocess, sys

say = lambda *event: os.write(1, json.dumps([NAME, *event]).encode() + b"\\n")
"""
STEADY_CHILD = "say('pid', os.getpid()); signal.pause()"
STUBBORN = (
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); say('pid', os.getpid())\nwhile True: signal.pause()"
)
POLITE = (
    "import time\nsignal.signal(signal.SIGTERM, lambda *_: (say('asked', ''), sys.exit(0)))\n"
    "say('pid', os.getpid())\nsignal.pause()"
)
PATIENT = (
    "signal.signal(signal.SIGTERM, lambda *_: say('asked', ''))\n"
    "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))\n"
    "say('pid', os.getpid())\nwhile True: signal.pause()"
)
FAMILY = (
    "child = subprocess.Popen(['sleep', '600'], process_group=0); say('grandchild', child.pid)\n"
    + STEADY_CHILD
)
BROKEN = "sys.exit(1)"
REFUSING = "sys.exit(2)"
HELD = "from app.up.lifeline import watch\nwatch(grace=0.3)\n"


class Supervised:
    """One supervisor process, and what it and its children tell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: queue.Queue[tuple[str, str, str | int]] = queue.Queue()
        self.seen: list[tuple[str, str, str | int]] = []
        self.process: subprocess.Popen[str] | None = None
        self.pids: list[int] = []

    def run(self, *, data: bool = False, grace: float = 20, **children: str) -> "Supervised":
        plan = {
            "children": {name: f"NAME = {name!r}{PREAMBLE}{text}" for name, text in children.items()},
            "data": str(self.folder) if data else "",
            "lock": str(self.folder),
            "grace": grace,
        }
        self.process = forked.Popen(
            [sys.executable, "-c", SUPERVISOR, json.dumps(plan)], stdout=subprocess.PIPE, text=True
        )
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def _listen(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                name, event, detail = json.loads(line)
                if event in ("pid", "grandchild"):
                    self.pids.append(detail)
                self.told.put((name, event, detail))

    def wait(self, name: str, event: str) -> str | int:
        """The detail of the next such event; others wait for their turn."""
        while True:
            for told in self.seen[:]:
                if told[:2] == (name, event):
                    self.seen.remove(told)
                    return told[2]
            self.seen.append(self.told.get(timeout=60))

    def order(self, *events: tuple[str, str]) -> list[tuple[str, str]]:
        """Wait for all of these; the order in which they came."""
        self.seen.clear()
        came: list[tuple[str, str]] = []
        while len(came) < len(events):
            name, event, _ = self.told.get(timeout=60)
            came.extend(each for each in events if each == (name, event))
        return came

    def pid(self, name: str) -> int:
        return int(self.wait(name, "pid"))

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def tells(self, name: str, event: str, *, within: float) -> bool:
        """Whether the next event, should one come within so many seconds, is this one."""
        try:
            return self.told.get(timeout=within)[:2] == (name, event)
        except queue.Empty:
            return False

    def code(self) -> int:
        assert self.process is not None
        return self.process.wait(60)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    started = Supervised(tmp_path)
    yield started
    if started.process is not None:
        started.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            started.process.wait(60)
        started.process.kill()
        started.process.wait()
    for pid in started.pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def ended(*pids: int) -> bool:
    """Whether all of these end within moments."""
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(60)
    return not any(psutil.pid_exists(pid) for pid in pids)


def test_a_killed_child_is_back_within_moments(supervised: Supervised) -> None:
    pid = supervised.run(one=STEADY_CHILD, two=STEADY_CHILD).pid("one")
    other = supervised.pid("two")
    os.kill(pid, signal.SIGKILL)
    assert supervised.wait("one", "exited") == "signal SIGKILL; starts again in 0.2 s"
    assert supervised.pid("one") != pid
    assert psutil.pid_exists(other)


def test_a_child_that_never_lives_is_started_more_and_more_slowly(supervised: Supervised) -> None:
    supervised.run(broken=BROKEN)
    details = [str(supervised.wait("broken", "exited")) for _ in range(4)]
    assert details == [f"exit code 1; starts again in {delay} s" for delay in ("0.2", "0.4", "0.8", "1.6")]


@pytest.mark.parametrize(
    ("last", "lived", "delay"),
    [
        (0, 0, 0.2),
        (0.2, 1, 0.4),
        (6.4, 1, LONGEST_DELAY),
        (10, STEADY - 1, LONGEST_DELAY),
        (10, STEADY, 0.2),
    ],
)
def test_the_delay_doubles_up_to_a_limit_and_is_forgotten_after_a_steady_life(
    last: float, lived: float, delay: float
) -> None:
    assert next_delay(last, lived=lived) == delay


def test_a_child_that_refuses_its_configuration_stops_everything(supervised: Supervised) -> None:
    pid = supervised.run(one=STEADY_CHILD, refusing=REFUSING).pid("one")
    assert supervised.code() == 2
    assert ended(pid)


@pytest.mark.parametrize(
    ("starts", "ends"),
    [
        (("sys.exit(1)", "sys.exit(2)"), ("exit code 1", "exit code 2")),
        (("sys.exit(0)", "sys.exit(2)"), ("exit code 0", "exit code 2")),
        (("sys.exit(1)", "sys.exit(2)", "sys.exit(2)"), ("exit code 1", "exit code 2", "exit code 2")),
        (("os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(2)"), ("signal SIGKILL", "exit code 2")),
        (("sys.exit(3)", "sys.exit(1)", "sys.exit(2)"), ("exit code 3", "exit code 1", "exit code 2")),
    ],
)
def test_a_child_that_refuses_its_configuration_after_its_first_start_is_started_again(
    supervised: Supervised, starts: tuple[str, ...], ends: tuple[str, ...]
) -> None:
    """It started well once: a file that is just being written, or a host that is away, made it refuse."""
    notes = supervised.folder / "starts"
    count = f"with open({str(notes)!r}, 'a+b') as notes: number = notes.write(b'.') and notes.tell() - 1\n"
    program = f"{count}if number < {len(starts)}: exec({starts!r}[number])\n{STEADY_CHILD}"
    pid = supervised.run(one=program, two=STEADY_CHILD).pid("two")
    for end in ends:
        assert str(supervised.wait("one", "exited")).startswith(f"{end}; starts again in ")
    assert supervised.pid("one") != pid
    assert psutil.pid_exists(pid)
    supervised.signal(signal.SIGTERM)
    assert supervised.code() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_all_and_leaves_no_process(supervised: Supervised, number: signal.Signals) -> None:
    pids = [supervised.run(one=FAMILY, two=POLITE).pid("one"), supervised.pid("two")]
    supervised.signal(number)
    assert supervised.code() == 0
    assert ended(*pids, *supervised.pids)
    assert len(supervised.pids) == 3


def test_children_are_asked_in_reverse_order(supervised: Supervised) -> None:
    supervised.run(one=POLITE, two=POLITE).pid("one")
    supervised.pid("two")
    supervised.signal(signal.SIGTERM)
    events = (("two", "stopping"), ("one", "stopping"))
    assert supervised.order(*events) == list(events)
    assert supervised.code() == 0


def test_what_does_not_stop_in_time_is_killed_with_its_family(supervised: Supervised) -> None:
    stubborn = FAMILY.replace(STEADY_CHILD, STUBBORN)
    pid = supervised.run(grace=0.3, stubborn=stubborn).pid("stubborn")
    supervised.signal(signal.SIGTERM)
    supervised.wait("stubborn", "killed")
    assert supervised.code() == 1
    assert ended(pid, *supervised.pids)


def test_the_echo_of_a_signal_kills_nothing(supervised: Supervised) -> None:
    pid = supervised.run(grace=600, patient=PATIENT).pid("patient")
    supervised.signal(signal.SIGTERM)
    supervised.signal(signal.SIGINT)
    supervised.signal(signal.SIGHUP)
    supervised.wait("patient", "asked")
    os.kill(pid, signal.SIGUSR1)
    assert supervised.order(("patient", "stopped")) == [("patient", "stopped")]
    assert supervised.code() == 0


def test_a_later_second_signal_kills_at_once(supervised: Supervised) -> None:
    pid = supervised.run(grace=600, stubborn=STUBBORN).pid("stubborn")
    supervised.signal(signal.SIGINT)
    supervised.wait("stubborn", "stopping")
    until = time.monotonic() + 30
    while not supervised.tells("stubborn", "killed", within=0.2):
        assert time.monotonic() < until, "impatience was not heard"
        supervised.signal(signal.SIGINT)
    assert supervised.code() == 1
    assert ended(pid)


def test_what_a_killed_child_left_behind_lives_on_and_ends_with_the_supervisor(
    supervised: Supervised,
) -> None:
    supervised.run(family=FAMILY)
    grandchild = int(supervised.wait("family", "grandchild"))
    os.kill(supervised.pid("family"), signal.SIGKILL)
    supervised.pid("family")
    assert psutil.pid_exists(grandchild)
    supervised.signal(signal.SIGTERM)
    assert supervised.code() == 0
    assert ended(*supervised.pids)
    assert len(supervised.pids) == 4


def test_children_end_by_their_lifeline_when_the_supervisor_is_killed(supervised: Supervised) -> None:
    supervised.run(plain=HELD + STEADY_CHILD, stubborn=HELD + FAMILY.replace(STEADY_CHILD, STUBBORN))
    pids = [supervised.pid("plain"), supervised.pid("stubborn")]
    supervised.signal(signal.SIGKILL)
    assert ended(*pids, *supervised.pids)
    assert len(supervised.pids) == 3


def test_a_child_of_a_child_does_not_hold_the_lifeline(supervised: Supervised) -> None:
    program = HELD + "subprocess.Popen(['sleep', '600'], start_new_session=True)\n" + STEADY_CHILD
    pid = supervised.run(one=program).pid("one")
    sleeper = psutil.Process(pid).children()[0].pid
    supervised.pids.append(sleeper)
    supervised.signal(signal.SIGKILL)
    assert ended(pid)
    assert psutil.pid_exists(sleeper)


def test_a_child_reads_nothing_from_its_standard_input(supervised: Supervised) -> None:
    supervised.run(one=HELD + "say('read', len(sys.stdin.read())); " + STEADY_CHILD)
    assert supervised.wait("one", "read") == 0


def test_the_lifeline_calls_what_it_is_given_and_is_out_of_reach() -> None:
    reading, writing = os.pipe()
    cut = threading.Event()
    watch(cut.set, fd=reading)
    os.write(writing, b"bytes mean nothing")
    assert os.read(reading, 1) == b""
    assert not cut.is_set()
    os.close(writing)
    assert cut.wait(20)
    os.close(reading)


def test_a_killed_valkey_comes_back_on_its_socket_with_every_write(supervised: Supervised) -> None:
    supervised.run(data=True, one=STEADY_CHILD).pid("one")
    record = json.loads((supervised.folder / "valkey.json").read_text())
    redis = Redis(unix_socket_path=record["socket"])
    for number in range(100):
        redis.rpush("numbers", number)
    os.kill(record["pid"], signal.SIGKILL)
    supervised.wait("valkey", "exited")
    supervised.wait("valkey", "ready")
    assert redis.llen("numbers") == 100
    redis.close()
    assert json.loads((supervised.folder / "valkey.json").read_text())["socket"] == record["socket"]


def test_valkey_is_there_before_the_children_and_ends_after_them(supervised: Supervised) -> None:
    supervised.run(data=True, one=POLITE)
    start = (("valkey", "ready"), ("one", "pid"))
    assert supervised.order(*start) == list(start)
    valkey = json.loads((supervised.folder / "valkey.json").read_text())["pid"]
    supervised.signal(signal.SIGTERM)
    end = (("one", "asked"), ("one", "stopped"), ("valkey", "stopping"), ("valkey", "stopped"))
    assert supervised.order(*end) == list(end)
    assert supervised.code() == 0
    assert ended(valkey)
    assert not (supervised.folder / "valkey.json").exists()


def test_a_killed_supervisor_is_followed_by_another_that_finds_all_data(supervised: Supervised) -> None:
    pid = supervised.run(data=True, one=HELD + STEADY_CHILD).pid("one")
    record = json.loads((supervised.folder / "valkey.json").read_text())
    with Redis(unix_socket_path=record["socket"]) as redis:
        redis.set("acknowledged", "yes")
        supervised.signal(signal.SIGKILL)
        assert ended(pid)
        supervised.code()
        supervised.run(data=True, one=HELD + STEADY_CHILD).pid("one")
        assert ended(record["pid"])
        assert redis.get("acknowledged") == b"yes"
    supervised.signal(signal.SIGTERM)
    assert supervised.code() == 0


def test_a_foundation_that_cannot_start_stops_the_start(supervised: Supervised) -> None:
    logs = supervised.folder / "valkey" / "appendonlydir"
    logs.mkdir(parents=True)
    (logs / "appendonly.aof.manifest").write_text("nonsense\n")
    supervised.run(data=True, one=STEADY_CHILD)
    assert "valkey did not start: " in str(supervised.wait("", "permanent"))
    assert supervised.code() == 1
    assert supervised.pids == []


def test_a_program_that_does_not_exist_stops_the_start() -> None:
    told: list[tuple[str, Change]] = []
    child = Child("one", ("/nonexistent/program",), {})
    supervisor = Supervisor([child], on_change=lambda name, change, _: told.append((name, change)))
    with pytest.raises(Permanent, match="/nonexistent/program"):
        supervisor.run()
    assert Change.STARTED not in [change for _, change in told]


def test_signal_handlers_are_restored_and_stop_works_from_another_thread() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
    ready = threading.Event()

    def tell(_name: str, change: Change, _detail: str) -> None:
        if change is Change.READY:
            ready.set()

    supervisor = Supervisor([Child("one", ("sleep", "600"), dict(os.environ))], on_change=tell)
    stopper = threading.Thread(target=_after(ready, supervisor.stop))
    stopper.start()
    assert supervisor.run() == 0
    stopper.join()
    after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
    assert after == before


def _after(event: threading.Event, action: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        event.wait(20)
        action()

    return run


def test_a_second_claim_is_refused_and_names_the_holder(supervised: Supervised) -> None:
    supervised.run(one=STEADY_CHILD).pid("one")
    assert supervised.process is not None
    with pytest.raises(Permanent) as caught, claim(supervised.folder):
        pass
    assert caught.value.code == "already_running"
    assert f"pid {supervised.process.pid}" in caught.value.message
    assert str(supervised.folder) in caught.value.message


def test_a_claim_is_free_again_after_its_holder_was_killed(supervised: Supervised) -> None:
    pid = supervised.run(one=STEADY_CHILD).pid("one")
    supervised.signal(signal.SIGKILL)
    supervised.code()
    assert psutil.pid_exists(pid)
    with claim(supervised.folder):
        pass
    with claim(supervised.folder):
        pass


def test_a_claim_on_a_place_that_is_no_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Permanent, match="writable folder"), claim(tmp_path / "file"):
        pass
