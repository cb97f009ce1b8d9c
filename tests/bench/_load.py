"""What benches send: signed deliveries over many connections; and what a process has used."""

import asyncio
import json
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import psutil
from svix.webhooks import Webhook

CONNECTIONS = 64
FILE = bytes(range(256)) * 1024
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


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


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has used so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
