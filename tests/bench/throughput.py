#!/usr/bin/env python
"""How much goes through a real `outkeep up`: deliveries accepted, and the whole line from POST to told.

Accepting is compared with the handler that one would write first: verify with svix, enqueue with RQ, answer;
same server, same durable Valkey, measured in the same run. Neither has workers running meanwhile.
On a machine that does other work as well, the CPU time is the figure to trust.
"""

import asyncio
import json
import multiprocessing
import os
import secrets
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import uvicorn
from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from svix.webhooks import Webhook

from app.receive.listening import free_port
from app.valkey.server import Embedded
from tests.e2e.file_host import file_host
from tests.e2e.recorder import Recorder, recorder
from tests.e2e.running import Up, running_up, until

WARM_UP = 500
ACCEPTED = 8000
WHOLE_LINE = 1500
CONNECTIONS = 64
FILE = bytes(range(256)) * 1024
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass(frozen=True)
class Server:
    """Where deliveries go, and the process that takes them."""

    port: int
    pid: int


@dataclass(frozen=True)
class Pace:
    """What was measured: deliveries a second, and milliseconds of CPU for each."""

    rate: float
    cpu: float


def plain_handler(port: int, redis_url: str) -> None:
    """Serve the handler that one would write first."""
    queue = Queue("plain", connection=Redis.from_url(redis_url), serializer=JSONSerializer)
    webhook = Webhook(SECRET)

    async def receive(request: Request) -> JSONResponse:
        body = await request.body()
        webhook.verify(body, dict(request.headers))
        await run_in_threadpool(queue.enqueue, "tasks.persist", json.loads(body)["id"])
        return JSONResponse({"ok": True}, status_code=202)

    app = Starlette(routes=[Route("/webhooks/replicate", receive, methods=["POST"])])
    uvicorn.run(app, port=port, access_log=False, log_level="warning")


@contextmanager
def plain() -> Iterator[Server]:
    """The plain handler on a durable Valkey of its own."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, Embedded(Path(folder)) as valkey:
        arguments = (port, valkey.url)
        process = multiprocessing.get_context("spawn").Process(target=plain_handler, args=arguments)
        process.start()
        assert process.pid is not None
        yield Server(port, process.pid)
        process.terminate()
        process.join()


@contextmanager
def receiver() -> Iterator[Server]:
    """The receiver of a real `up` whose workers are halted."""
    settings = {"REPLICATE_WEBHOOK_SECRET": SECRET, "LOG_LEVEL": "warning"}
    with tempfile.TemporaryDirectory() as folder, running_up(Path(folder), settings=settings) as up:
        os.kill(up.pids()["worker"], signal.SIGSTOP)
        yield Server(int(up.environment["PORT"]), up.pids()["receiver"])
        up.clear()


def deliveries(count: int, output: Any) -> list[bytes]:
    """Signed requests about as many different predictions, ready to be sent."""
    webhook, now = Webhook(SECRET), datetime.now(UTC)
    return [_delivery(webhook, now, output) for _ in range(count)]


def _delivery(webhook: Webhook, now: datetime, output: Any) -> bytes:
    stamp, webhook_id = now.isoformat(), f"msg_{secrets.token_hex(13)}"
    prediction = {
        "completed_at": stamp, "created_at": stamp, "error": None, "id": secrets.token_hex(13),
        "input": {"prompt": "a lighthouse at dusk"}, "logs": "100%" * 100, "metrics": {"predict_time": 1.5},
        "model": "outkeep/bench", "output": output, "started_at": stamp, "status": "succeeded",
        "urls": {"get": "https://api.replicate.com/v1/predictions/none"}, "version": "hidden",
    }  # fmt: skip
    body = json.dumps(prediction, separators=(",", ":")).encode()
    head = (
        "POST /webhooks/replicate HTTP/1.1", "host: bench", "content-type: application/json",
        f"content-length: {len(body)}", f"webhook-id: {webhook_id}",
        f"webhook-timestamp: {int(now.timestamp())}",
        f"webhook-signature: {webhook.sign(webhook_id, now, body.decode())}", "", "",
    )  # fmt: skip
    return "\r\n".join(head).encode() + body


async def flood(port: int, requests: Sequence[bytes], connections: int = CONNECTIONS) -> None:
    """Send all of them over a number of connections; each must be answered with 202."""
    left = iter(requests)

    async def send_some() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in left:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 202"), head
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
        writer.close()

    await asyncio.gather(*(send_some() for _ in range(connections)))


def accepting(server: Server) -> Pace:
    """How fast deliveries are answered with 2xx."""
    until(lambda: _listens(server.port), f"somebody listens on {server.port}")
    asyncio.run(flood(server.port, deliveries(WARM_UP, "text")))
    requests = deliveries(ACCEPTED, "text")
    started, spent = time.monotonic(), cpu_seconds(server.pid)
    asyncio.run(flood(server.port, requests))
    seconds, spent = time.monotonic() - started, cpu_seconds(server.pid) - spent
    return Pace(ACCEPTED / seconds, 1000 * spent / ACCEPTED)


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has used so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _listens(port: int) -> bool:
    try:
        asyncio.run(_connect(port))
    except OSError:
        return False
    return True


async def _connect(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


def whole_line() -> tuple[float, dict[str, float]]:
    """Predictions that go the whole way in a second, and the CPU time of each process for one."""
    settings = {"REPLICATE_WEBHOOK_SECRET": SECRET, "LOG_LEVEL": "warning"}
    with (
        tempfile.TemporaryDirectory() as folder,
        file_host(pieces=1, pause=0) as host,
        recorder() as downstream,
    ):
        settings["OUTKEEP_OUTPUT_HOSTS"] = host.url
        url = host.add("out.bin", FILE)
        with running_up(Path(folder), handlers=downstream.handler(), settings=settings) as up:
            pids = {name: pid for name, pid in up.pids().items() if name != "up"}
            send_and_wait(up, downstream, deliveries(WARM_UP // 5, url))
            requests = deliveries(WHOLE_LINE, url)
            before, started = {name: cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
            send_and_wait(up, downstream, requests)
            rate = WHOLE_LINE / (time.monotonic() - started)
            cpu = {name: 1000 * (cpu_seconds(pid) - before[name]) / WHOLE_LINE for name, pid in pids.items()}
            return rate, cpu


def send_and_wait(up: Up, downstream: Recorder, requests: Sequence[bytes]) -> None:
    """Send them all, and wait until the handler is told of each."""
    wanted = len(downstream.received) + len(requests)
    asyncio.run(flood(int(up.environment["PORT"]), requests))
    downstream.wait_for(lambda them: len(them.received) >= wanted, "all are told", seconds=120)


def main() -> None:
    with plain() as server:
        simple = accepting(server)
    report("accepted by a plain handler", simple)
    with receiver() as server:
        own = accepting(server)
    report("accepted by outkeep", own)
    print(f"{'ratio':28}{own.rate / simple.rate:8.1f} times   {simple.cpu / own.cpu:8.1f} times")
    rate, cpu = whole_line()
    report(f"stored and told, {len(FILE) // 1000} kB", Pace(rate, sum(cpu.values())))
    print("  of which " + ", ".join(f"{name} {spent:.2f}" for name, spent in cpu.items()))


def report(what: str, pace: Pace) -> None:
    """One line of the table."""
    print(f"{what:28}{pace.rate:8,.0f} a second{pace.cpu:8.2f} ms of CPU each")


if __name__ == "__main__":
    main()
