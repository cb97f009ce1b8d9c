#!/usr/bin/env python
"""The line through a real `outkeep up`: POST with signature → 256 kB fetched, hashed, synced → signed POST.

Prints predictions a second, the CPU time of each of our processes, how many reads Valkey answers, what waits
cost at ten a second, and (where strace is there) which calls of the workers wake threads or sync files.
On a machine that does other work as well, the CPU time and the counts are the figures to trust.
"""

import argparse
import asyncio
import multiprocessing
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from redis import Redis

from tests.bench._load import FILE, SECRET, cpu_seconds, deliveries, flood
from tests.e2e.running import Up, running_up

WARM_UP = 100
PACED = 10
"""Deliveries a second at which the time from POST to told is measured."""


async def _serve(pipe: Connection) -> None:
    """A host of files and a handler at once: GET gives the file, POST takes an event and notes when."""
    told: list[float] = []
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {len(FILE)}\r\n\r\n"
    file = head.encode() + FILE

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"GET"):
                    writer.write(file)
                    continue
                length = re.search(rb"(?i)content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                told.append(time.time())
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    while await asyncio.to_thread(pipe.recv):
        pipe.send(list(told))


class Peer:
    """The other side, in a process of its own."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.url = f"http://127.0.0.1:{pipe.recv()}"

    def told(self) -> list[float]:
        """When it was told of something."""
        self._pipe.send("told")
        times: list[float] = self._pipe.recv()
        return times

    def wait_for(self, count: int) -> list[float]:
        """The same, once it was told so often."""
        while len(times := self.told()) < count:
            time.sleep(0.01)
        return times


@contextmanager
def peer() -> Iterator[Peer]:
    """A host of files and a handler for the length of the block."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serving, args=(theirs,), daemon=True)
    process.start()
    yield Peer(ours)
    process.terminate()


def _serving(pipe: Connection) -> None:
    asyncio.run(_serve(pipe))


@dataclass(frozen=True)
class Line:
    """A running `up` and its peer."""

    up: Up
    peer: Peer
    redis: Redis

    @property
    def port(self) -> int:
        return int(self.up.environment["PORT"])

    @property
    def pids(self) -> dict[str, int]:
        return {name: pid for name, pid in self.up.pids().items() if name != "up"}

    def requests(self, count: int) -> list[bytes]:
        """Signed deliveries of as many predictions, each with one file."""
        return deliveries(count, f"{self.peer.url}/out.bin")

    def flood(self, requests: Sequence[bytes]) -> float:
        """Send them all at once; the seconds until the handler was told of each."""
        wanted, began = len(self.peer.told()) + len(requests), time.time()
        asyncio.run(flood(self.port, requests))
        return self.peer.wait_for(wanted)[-1] - began


def burst(line: Line, count: int) -> None:
    """As many as go."""
    requests = line.requests(count)
    before, reads = {name: cpu_seconds(pid) for name, pid in line.pids.items()}, _reads(line.redis)
    commands = _commands(line.redis)
    seconds = line.flood(requests)
    spent = {name: 1000 * (cpu_seconds(pid) - before[name]) / count for name, pid in line.pids.items()}
    print(f"{'predictions a second':40}{count / seconds:8.0f}")
    print(f"{'CPU of all for one, ms':40}{sum(spent.values()):8.2f}   {_listed(spent)}")
    print(f"{'reads that Valkey answers, under load':40}{(_reads(line.redis) - reads) / count:8.1f}")
    each = {name: (calls - commands.get(name, 0)) / count for name, calls in _commands(line.redis).items()}
    shown = sorted(((calls, name) for name, calls in each.items() if calls >= 0.1), reverse=True)
    print(f"{'commands, under load':40}{sum(each.values()):8.1f}   "
          + ", ".join(f"{name} {calls:.1f}" for calls, name in shown))  # fmt: skip


def paced(line: Line, count: int) -> None:
    """Ten a second, one by one."""
    requests, sent = line.requests(count), []
    known, reads, idle = len(line.peer.told()), _reads(line.redis), 0.0
    began = time.time()
    for number, request in enumerate(requests):
        time.sleep(max(0.0, began + number / PACED - time.time()))
        sent.append(time.time())
        asyncio.run(flood(line.port, [request], connections=1))
    times = line.peer.wait_for(known + count)[known:]
    seconds, answered = time.time() - began, _reads(line.redis) - reads
    reads = _reads(line.redis)
    time.sleep(5)  # what is asked without any delivery
    idle = (_reads(line.redis) - reads) / 5
    waits = sorted(1000 * (told - at) for at, told in zip(sent, times, strict=True))
    print(f"{f'p50, p99 at {PACED} a second, ms':40}{waits[count // 2]:8.1f}, {waits[-1 - count // 100]:.1f}")
    print(f"{'reads that Valkey answers, one by one':40}{(answered - idle * seconds) / count:8.1f}"
          f"   {idle:.1f} a second without any")  # fmt: skip


def traced(line: Line, count: int) -> None:
    """Which system calls the workers make."""
    if shutil.which("strace") is None:
        print("no strace here: calls of the workers are not counted")
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for name, pid in line.pids.items():
            if name not in {"valkey", "receiver"}:
                out = Path(folder) / name
                command = ["strace", "-c", "-f", "-o", str(out), "-p", str(pid)]
                runs.append((out, subprocess.Popen(command, stderr=subprocess.DEVNULL)))
        time.sleep(1)
        line.flood(line.requests(count))
        for _, run in runs:
            run.send_signal(signal.SIGINT)
            run.wait()
        rows = [row.split() for out, _ in runs for row in out.read_text().splitlines()]
    calls: Counter[str] = Counter()
    for row in rows:  # share, seconds, microseconds a call, calls, perhaps errors, name
        if len(row) >= 5 and row[3].isdigit() and row[-1] != "total":
            calls[row[-1]] += int(row[3])
    for name in ("futex", "fsync"):
        print(f"{f'{name} in the workers':40}{calls[name] / count:8.1f}")
    print("  " + ", ".join(f"{name} {number / count:.1f}" for name, number in calls.most_common(15)))


def _reads(redis: Redis) -> int:
    return int(redis.info("stats")["total_reads_processed"])


def _commands(redis: Redis) -> dict[str, int]:
    stats: dict[str, dict[str, Any]] = redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()}


def _listed(spent: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in spent.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--only", choices=["burst", "paced", "traced"])
    options = parser.parse_args()
    settings = {"REPLICATE_WEBHOOK_SECRET": SECRET, "LOG_LEVEL": "warning"}
    with tempfile.TemporaryDirectory() as folder, peer() as other:
        settings["OUTKEEP_OUTPUT_HOSTS"] = other.url
        handler = f'[[handler]]\nname = "sink"\nurl = "{other.url}/sink"\nsecret = "{SECRET}"\n'
        with running_up(Path(folder), handlers=handler, settings=settings) as up, up.redis() as redis:
            line = Line(up, other, redis)
            line.flood(line.requests(WARM_UP))
            if options.only in {None, "burst"}:
                burst(line, options.count)
            if options.only in {None, "paced"}:
                paced(line, max(50, options.count // 10))
            if options.only in {None, "traced"}:
                traced(line, max(100, options.count // 5))
            up.clear()


if __name__ == "__main__":
    main()
