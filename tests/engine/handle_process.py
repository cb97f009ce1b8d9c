"""A worker of the queue `handle` for tests: `python -m tests.engine.handle_process URL [pace as JSON]`."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from redis import Redis

from app.clock import Clock, lend_to_rq
from app.core.handlers import MEMORY
from app.storage.store import Storage
from app.telemetry import logs as telemetry
from workers.engine import handle
from workers.engine.patient_worker import Pace


def hold(folder: str, *, child: bool = False) -> None:
    """Tell that it runs, by a file with its pid as name, and wait until there is a file `go`.

    With `child`, a program that it started runs on as well; its pid stands in the file.
    """
    program = subprocess.Popen(["sleep", "600"]) if child else None
    draft = Path(folder) / f".{os.getpid()}"
    draft.write_text(str(program.pid) if program else "")
    draft.rename(draft.with_name(f"run-{os.getpid()}"))
    while not (Path(folder) / "go").exists():
        time.sleep(0.02)


def leave(folder: str) -> None:
    """What a crash in C looks like."""
    (Path(folder) / f"run-{os.getpid()}").touch()
    os._exit(7)


def leave_well(folder: str) -> None:
    """The same, with an exit code that says that all is well."""
    (Path(folder) / f"run-{os.getpid()}").touch()
    os._exit(0)


def end(folder: str) -> None:
    """Nothing more than that it ran."""
    (Path(folder) / f"run-{os.getpid()}").touch()


NAMES = [f"tests.engine.handle_process.{function.__name__}" for function in (hold, leave, leave_well, end)]


def hang_for_ever() -> Storage:
    """A storage whose client waits for a thread that was not forked."""
    threading.Event().wait()
    raise AssertionError


def main(url: str, pace: str = "{}", storage: str = "") -> None:
    telemetry.configure("info", "json")
    listed = dict.fromkeys(NAMES, MEMORY)
    opened = hang_for_ever if storage == "hangs" else None
    clock = Clock()
    lend_to_rq(clock)
    worker = handle.worker(Redis.from_url(url), listed, opened, pace=Pace(**json.loads(pace)), clock=clock)
    worker.work(logging_level="WARNING")


if __name__ == "__main__":
    main(*sys.argv[1:])
