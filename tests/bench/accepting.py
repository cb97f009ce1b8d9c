#!/usr/bin/env python
"""How cheaply deliveries are accepted, in ratios of one run: `outkeep serve` and what one would write else.

Each receiver runs on the same server (uvicorn) with a durable Valkey of its own; nobody works on the jobs.
`bare` is an ASGI callable that reads and answers: the bound of what can be reached. `rq` and `arq` verify
with svix, enqueue one job and answer. CPU is that of receiver and Valkey together; on a machine that does
other work as well it is the figure to trust. `arq` has an environment of its own: it wants an older redis-py.

`accepting.py [RECEIVER …]` measures only those.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from app.receive.listening import free_port
from app.valkey.server import Embedded
from tests.bench._load import cpu_seconds, deliveries, flood
from tests.bench._receivers import SECRET
from tests.e2e.running import until
from tests.receive.web import clean_environment, environment

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("ROUNDS", "3"))
WARM_UP = 300
COUNT = int(os.environ.get("COUNT", "4000"))
RECEIVERS = ("bare", "outkeep", "rq", "arq")


@dataclass(frozen=True)
class Cost:
    """Deliveries a second, and milliseconds of CPU for each: the receiver's, and with that of its Valkey."""

    rate: float
    receiver: float
    cpu: float


@contextmanager
def running(name: str) -> Iterator[tuple[int, list[int]]]:
    """The port of a receiver, and the processes that count: it and its Valkey."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, Embedded(Path(folder)) as valkey:
        assert valkey.pid is not None
        program = [ROOT / ".venv-arq" / "bin" / "python"] if name == "arq" else [sys.executable]
        command = [*program, Path(__file__).with_name("_receivers.py"), name, str(port), valkey.url]
        settings = dict(os.environ)
        if name == "outkeep":
            command = [sys.executable, "-P", "-m", "app.cli", "serve"]
            settings = environment(valkey.url, Path(folder), PORT=str(port), REPLICATE_WEBHOOK_SECRET=SECRET)
            settings = clean_environment(settings)
        with subprocess.Popen(command, cwd=ROOT, env=settings, stderr=subprocess.DEVNULL) as process:
            until(lambda: _listens(port), f"{name} listens")
            yield port, [process.pid, valkey.pid]
            process.terminate()


def measure(name: str) -> Cost:
    """What one run of a receiver costs."""
    with running(name) as (port, pids):
        asyncio.run(flood(port, deliveries(WARM_UP, "text")))
        requests = deliveries(COUNT, "text")
        before, started = [cpu_seconds(pid) for pid in pids], time.monotonic()
        asyncio.run(flood(port, requests))
        seconds = time.monotonic() - started
        spent = [1000 * (cpu_seconds(pid) - then) / COUNT for pid, then in zip(pids, before, strict=True)]
        return Cost(COUNT / seconds, spent[0], sum(spent))


def _listens(port: int) -> bool:
    async def connect() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    with suppress(OSError):
        asyncio.run(connect())
        return True
    return False


def main() -> None:
    names = sys.argv[1:] or RECEIVERS
    if "arq" in names:
        subprocess.run(["make", "--silent", "arq", f"PYTHON={sys.executable}"], cwd=ROOT, check=True)
    rounds = [{name: measure(name) for name in names} for _ in range(ROUNDS)]
    print(
        f"{'receiver':10}{'a second':>10}{'of bare':>9}{'ms of CPU':>11}{'without Valkey':>16}{'of bare':>9}"
    )
    for name in names:
        costs = [found[name] for found in rounds]
        rate, cpu, own = (
            median(getattr(cost, part) for cost in costs) for part in ("rate", "cpu", "receiver")
        )
        bare = [found.get("bare", found[name]) for found in rounds]
        part = median(cost.rate / one.rate for cost, one in zip(costs, bare, strict=True))
        times = median(cost.cpu / one.cpu for cost, one in zip(costs, bare, strict=True))
        print(f"{name:10}{rate:>10,.0f}{part:>9.2f}{cpu:>11.3f}{own:>16.3f}{times:>8.1f}x")


if __name__ == "__main__":
    main()
