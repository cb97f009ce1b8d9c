#!/usr/bin/env python
"""How much memory events of 30 MB cost: 20 in a row through a real `outkeep up`, each with its output inside.

Resident sets (VmRSS) after the third and after the last show whether memory is given back; the highest one
(VmHWM, reset before) shows what an event costs. Linux only.
"""

import base64
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from app.core.names import Kind
from app.simulator import Simulator
from tests.bench.memory import reset_highest, resident
from tests.bucket import s3_server
from tests.e2e.recorder import Recorder, recorder
from tests.e2e.running import Up, running_up

COUNT = 20
EARLY = 3
SIZE = 30_000_000
PARTS = ("receiver", "worker")


def deliver(up: Up, replicate: Simulator, downstream: Recorder, identity: str) -> None:
    """Have one large event kept, and wait until the handler is told."""
    image = base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + os.urandom(SIZE * 3 // 4)).decode()
    stamps = {"created_at": "2026-01-01T00:00:00Z", "completed_at": None, "error": None, "version": "hidden"}
    output = f"data:image/png;base64,{image}"
    ended: dict[str, object] = {
        "id": identity,
        "input": {},
        "output": output,
        "status": "succeeded",
        **stamps,
    }
    assert len(json.dumps(ended)) > SIZE
    replicate.finish(Kind.PREDICTION, ended, up.hook)
    downstream.wait_for(lambda them: identity in them.ids(), f"{identity} is told", seconds=120)


def measure(where: str, settings: dict[str, str]) -> None:
    """Print what 20 of them cost each process."""
    with tempfile.TemporaryDirectory() as folder, Simulator() as replicate, recorder() as downstream:
        own = {"REPLICATE_WEBHOOK_SECRET": replicate.secret, **settings}
        with running_up(Path(folder), handlers=downstream.handler(), settings=own) as up:
            pids = {part: up.pids()[part] for part in PARTS}
            idle = {part: resident(pid, "VmRSS") for part, pid in pids.items()}
            early: dict[str, float] = {}
            started = time.monotonic()
            for number in range(1, COUNT + 1):
                deliver(up, replicate, downstream, f"large-{number}")
                if number == EARLY:
                    early = {part: resident(pid, "VmRSS") for part, pid in pids.items()}
                    for pid in pids.values():
                        reset_highest(pid)
            seconds = time.monotonic() - started
            print(f"{where}: {COUNT} deliveries of {SIZE:,} bytes in {seconds:.1f} s; resident MiB:")
            for part, pid in pids.items():
                late, highest = resident(pid, "VmRSS"), resident(pid, "VmHWM")
                print(
                    f"  {part:<9} idle {idle[part]:6.1f}, after {EARLY} {early[part]:6.1f}, "
                    f"after {COUNT} {late:6.1f}, at most {highest:6.1f}"
                )
            for line in up.text().splitlines():
                if '"level": "error"' in line:
                    print(line, file=sys.stderr)


def main() -> None:
    measure("local folder", {})
    with s3_server() as s3:
        measure("S3", s3.settings())


if __name__ == "__main__":
    main()
