#!/usr/bin/env python
"""How fast outputs are kept: from POST to told, against what curl alone takes for the same files.

16 files of 1 MB in one prediction, and one of 1 GB, from one host on this machine, in turns. `curl` does not
sync what it writes; a prediction is told of after everything of it is on the disk.
"""

import argparse
import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Process
from pathlib import Path

from tests.bench._load import SECRET, cpu_seconds, deliveries, flood
from tests.e2e.recorder import Recorder, recorder
from tests.e2e.running import Up, running_up

ROUNDS = 3
PLANS = {"16 files of 1 MB": (16, 1_000_000), "1 file of 1 GB": (1, 1_000_000_000)}


def serve(listening: socket.socket, folder: Path) -> None:
    """A host that gives the files in a folder as fast as the kernel can, each connection in a thread."""

    def talk(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            while line := lines.readline():
                path = folder / line.split()[1].decode().lstrip("/")
                while lines.readline().strip():
                    pass
                size = path.stat().st_size
                connection.sendall(f"HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n".encode())
                with path.open("rb") as file:
                    connection.sendfile(file)

    while True:
        connection, _ = listening.accept()
        threading.Thread(target=talk, args=(connection,), daemon=True).start()


@contextmanager
def host(folder: Path) -> Iterator[str]:
    """The same in a process of its own; its URL."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        process = Process(target=serve, args=(listening, folder), daemon=True)
        process.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        process.terminate()
        process.join()


def by_curl(urls: Sequence[str], folder: Path) -> tuple[float, float]:
    """Seconds, and seconds of CPU, that curl takes for all of them at once."""
    targets = [word for n, url in enumerate(urls) for word in ("-o", str(folder / f"{n}"), url)]
    began, before = time.monotonic(), os.times()
    subprocess.run(["curl", "--no-progress-meter", "--fail", "--parallel", *targets], check=True)
    spent, after = time.monotonic() - began, os.times()
    for path in folder.iterdir():
        path.unlink()
    return spent, sum(after[2:4]) - sum(before[2:4])


def by_up(urls: Sequence[str], up: Up, told: Recorder) -> tuple[float, float]:
    """Seconds from POST to told, and seconds of CPU of all its processes, for a prediction with these."""
    pids = [pid for name, pid in up.pids().items() if name != "up"]
    [request] = deliveries(1, list(urls))
    began, before = time.monotonic(), sum(map(cpu_seconds, pids))
    send_and_wait(up, told, [request])
    return time.monotonic() - began, sum(map(cpu_seconds, pids)) - before


def send_and_wait(up: Up, told: Recorder, requests: Sequence[bytes]) -> None:
    """Send them all, and wait until the handler is told of each."""
    wanted = len(told.received) + len(requests)
    asyncio.run(flood(int(up.environment["PORT"]), requests, connections=1))
    told.wait_for(lambda them: len(them.received) >= wanted, "all are told", seconds=300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    if shutil.which("curl") is None:
        print("curl is missing: nothing to compare with")
        return
    with tempfile.TemporaryDirectory() as name, recorder() as told:
        folder = Path(name)
        files, curled = folder / "files", folder / "curled"
        files.mkdir()
        curled.mkdir()
        with host(files) as url:
            settings = {
                "REPLICATE_WEBHOOK_SECRET": SECRET,
                "LOG_LEVEL": "warning",
                "OUTKEEP_OUTPUT_HOSTS": url,
                "OUTKEEP_DISK_FLOOR": "0",
            }
            with running_up(folder, handlers=told.handler(), settings=settings) as up:
                send_and_wait(up, told, deliveries(20, "warm up"))
                for what, (count, size) in PLANS.items():
                    for number in range(count):
                        with (files / f"{number}.bin").open("wb") as file:
                            for _ in range(size // 1_000_000):
                                file.write(os.urandom(1_000_000))
                    os.sync()  # what is on its way to the disk is nobody's measure
                    urls = [f"{url}/{number}.bin" for number in range(count)]
                    for _ in range(rounds):
                        theirs, their_cpu = by_curl(urls, curled)
                        os.sync()
                        ours, our_cpu = by_up(urls, up, told)
                        os.sync()
                        print(
                            f"{what:20}curl {theirs:6.2f} s ({their_cpu:.2f} CPU)   "
                            f"told {ours:6.2f} s ({our_cpu:.2f} CPU)   ratio {theirs / ours:.2f}",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
