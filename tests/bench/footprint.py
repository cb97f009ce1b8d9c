#!/usr/bin/env python
"""What `outkeep up` costs while idle: the proportional set size (PSS) of each of its processes. Linux only.

Shared pages are divided among those that share them, so the sum is what the machine would get back.
"""

import tempfile
from pathlib import Path

import psutil

from app.core.names import SWEPT
from tests.e2e.recorder import recorder
from tests.e2e.running import Up, running_up, until

MIB = 1 << 20
TARGET = 170


def pss(up: Up) -> dict[str, float]:
    """MiB by name of process."""
    return {name: psutil.Process(pid).memory_full_info().pss / MIB for name, pid in up.pids().items()}


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        recorder() as downstream,
        running_up(Path(folder), handlers=downstream.handler()) as up,
    ):
        with up.redis() as redis:
            # The last that a start sets in motion.
            until(lambda: redis.exists(SWEPT), "the first sweep has ended")
        reading = pss(up)
        assert len(reading) == len(up.processes()), "every process is counted"
        for name, size in sorted(reading.items(), key=lambda item: -item[1]):
            print(f"{name:10} {size:6.1f} MiB")
        print(f"{'total':10} {sum(reading.values()):6.1f} MiB (target: at most {TARGET})")


if __name__ == "__main__":
    main()
