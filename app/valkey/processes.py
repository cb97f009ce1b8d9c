"""Processes as /proc shows them: their working folder, the members of a session, how one ended."""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec

PROC = Path("/proc")

P = ParamSpec("P")


def bounded(seconds: int, find: Callable[P, list[str]], *args: P.args, **kwargs: P.kwargs) -> list[str]:
    """What `find` finds, for `in_child`: the child ends without a word when that takes too long."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    return find(*args, **kwargs)


def in_child(find: Callable[P, list[str]], *args: P.args, **kwargs: P.kwargs) -> list[str]:
    """What `find` finds, called in a forked child: the threads that it starts end with that.

    Only a process without threads may call this. Raises `ChildProcessError` when the child crashes, which the
    child itself has reported.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with os.fdopen(writer, "w") as file:
                json.dump(find(*args, **kwargs), file)
            os._exit(0)
        except BaseException:  # noqa: BLE001  # nothing of the parent's may run here
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as file:
        found = file.read()
    if os.waitpid(pid, 0)[1] != 0:
        raise ChildProcessError("a check of the start has crashed")
    result: list[str] = json.loads(found)
    return result


def works_in(pid: int, folder: Path, *, program: str) -> bool:
    """Whether `pid` lives, runs `program` and has `folder` as its working directory.

    This tells our own process from a stranger that was given the same number later. A zombie does not count.
    """
    folder_of = PROC / str(pid)
    try:
        return (folder_of / "comm").read_text().strip() == program and (folder_of / "cwd").samefile(folder)
    except (OSError, ValueError):
        return False


def members(session: int) -> list[int]:
    """The living processes (no zombies) of the session that process `session` leads or has led.

    A session outlives its leader, and its number is not given away while a member lives.
    """
    found = []
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                # The name in parentheses may hold anything; behind it: state, parent, group, session.
                state, _, _, owner = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                if state not in "ZX" and int(owner) == session:
                    found.append(int(folder.name))
    return found


def signal_session(session: int, number: signal.Signals, *, spare: int = 0) -> None:
    """Send a signal to every member of a session but `spare`, whatever process group it moved to."""
    for pid in members(session):
        if pid != spare:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def is_stopped(pid: int) -> bool:
    """Whether a process of this host stands still by a signal; False where that cannot be told."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


def describe_exit(code: int) -> str:
    """An exit code in words; negative codes are signals, as `subprocess` gives them."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
