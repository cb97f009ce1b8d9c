#!/usr/bin/env python
"""How much memory a large output costs the worker that keeps it: 1 GB through a real `outkeep up`, to S3 too.

The growth is that of the highest resident set (VmHWM, reset before), so that no peak is missed. Page cache is
not part of it. Linux only.
"""

import asyncio
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from app.core.names import Kind
from app.simulator import Simulator
from app.storage.store import Storage
from tests.bucket import S3, s3_server
from tests.e2e.recorder import Recorder, recorder
from tests.e2e.running import Up, running_up

MIB = 1 << 20
SIZE = 1_000_000_000
TARGET = 32
BLOCK = bytes(range(256)) * 4096


async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with as many bytes as the path says."""
    size = int((await reader.readuntil(b"\r\n\r\n")).split()[1].removeprefix(b"/").removesuffix(b".bin"))
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
    for start in range(0, size, len(BLOCK)):
        writer.write(BLOCK[: size - start])
        await writer.drain()
    writer.close()


def serve_files() -> str:
    """Run the file host in a thread; its URL."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(stream, "127.0.0.1", 0))
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def resident(pid: int, field: str) -> float:
    """`VmRSS` (now) or `VmHWM` (highest since the reset) of a process, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kib) / 1024


def reset_highest(pid: int) -> None:
    """Let `VmHWM` begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def keep(up: Up, replicate: Simulator, downstream: Recorder, identity: str, url: str) -> None:
    """Have one output kept, and wait until the handler is told."""
    output = {"id": identity, "input": {}, "output": url, "status": "succeeded", "version": "hidden"}
    stamps = {"created_at": "2026-01-01T00:00:00Z", "completed_at": None, "error": None}
    replicate.finish(Kind.PREDICTION, output | stamps, up.hook)
    downstream.wait_for(lambda them: identity in them.ids(), f"{identity} is told", seconds=120)


def require_stored(up: Up, identity: str, size: int) -> None:
    """Fail unless every byte is there."""
    folder = up.outputs / "predictions" / identity
    (file,) = json.loads((folder / "prediction.json").read_text())["files"]
    digest = hashlib.sha256()
    for start in range(0, size, len(BLOCK)):
        digest.update(BLOCK[: size - start])
    with (folder / file["name"]).open("rb") as stored:
        assert hashlib.file_digest(stored, "sha256").hexdigest() == file["sha256"] == digest.hexdigest()


def require_stored_in(s3: S3, identity: str, size: int) -> None:
    """Fail unless all of the file is in the bucket."""
    prefix = f"predictions/{identity}"
    storage = Storage(s3.url)
    (file,) = json.loads(storage.get(f"{prefix}/prediction.json") or b"")["files"]
    stored = storage.head(f"{prefix}/{file['name']}")
    assert stored is not None
    assert stored.size == size == file["size"]


def measure(host: str, where: str, more: Mapping[str, str], check: Callable[[Up, str, int], None]) -> None:
    """Print what keeping a large file costs the worker."""
    with tempfile.TemporaryDirectory() as folder, Simulator() as replicate, recorder() as downstream:
        settings = {"REPLICATE_WEBHOOK_SECRET": replicate.secret, "OUTKEEP_OUTPUT_HOSTS": host, **more}
        with running_up(Path(folder), handlers=downstream.handler(), settings=settings) as up:
            worker = up.pids()["worker"]
            idle = highest = resident(worker, "VmRSS")
            for identity, size in (("small", 1000), ("large", SIZE)):
                reset_highest(worker)
                started = time.monotonic()
                keep(up, replicate, downstream, identity, f"{host}/{size}.bin")
                seconds = time.monotonic() - started
                highest = resident(worker, "VmHWM")
                print(f"{where}: {size:,} bytes kept in {seconds:.1f} s: at most {highest:.1f} MiB resident")
                check(up, identity, size)
            print(
                f"idle before {idle:.1f} MiB, so it grew by {highest - idle:.1f} MiB (target: below {TARGET})"
            )


def main() -> None:
    host = serve_files()
    measure(host, "local folder", {}, require_stored)
    with s3_server() as s3:
        os.environ.update(s3.variables())
        measure(host, "S3", s3.settings(), lambda _, identity, size: require_stored_in(s3, identity, size))


if __name__ == "__main__":
    main()
