"""The end of a process that is asked to end while it starts."""

import subprocess
import sys

import pytest

START = """
import os, signal
from app.telemetry.interrupts import Ending

class Deleted:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000):
            pass

ending = Ending()
{moment}
print("goes on", flush=True)
ending.check()
print("took over", flush=True)
"""
DELETION = "it = Deleted()\ndel it"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    ("moment", "said"),
    [
        ("Deleted().__del__()", ""),
        # Python reports an exception there and goes on: the next to ask must hear of it.
        (DELETION, "goes on\n"),
        ("cycle = Deleted()\ncycle.itself = cycle\ndel cycle\nimport gc; gc.collect()", "goes on\n"),
        ("try:\n    raise OSError\nexcept OSError:\n    it = Deleted()\n    del it", "goes on\n"),
        ("pass", "goes on\ntook over\n"),
    ],
)
def test_a_signal_ends_a_starting_process_wherever_it_comes(name: str, moment: str, said: str) -> None:
    code = START.format(name=name, moment=moment)
    process = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert (process.returncode, process.stdout) == (0, said)
