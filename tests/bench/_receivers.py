"""The receivers that acceptance is compared with: `python receivers.py NAME PORT REDIS_URL`.

Run by the interpreter of the environment that has what it imports, and so apart from the rest of the tests.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import uvicorn

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATH = "/webhooks/replicate"


def bare(_: str) -> Any:
    """Reads the body and answers, no more: what the server alone takes."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        length = [(b"content-type", b"application/json"), (b"content-length", b"11")]
        await send({"type": "http.response.start", "status": 202, "headers": length})
        await send({"type": "http.response.body", "body": b'{"ok":true}'})

    return answer


def rq(redis_url: str) -> Any:
    """What one would write first: verify with svix, enqueue with RQ in a thread, answer."""
    from redis import Redis
    from rq import Queue
    from rq.serializers import JSONSerializer
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route
    from svix.webhooks import Webhook

    queue = Queue("plain", connection=Redis.from_url(redis_url), serializer=JSONSerializer)
    webhook = Webhook(SECRET)

    async def receive(request: Request) -> JSONResponse:
        body = await request.body()
        webhook.verify(body, dict(request.headers))
        await run_in_threadpool(queue.enqueue, "tasks.persist", json.loads(body)["id"])
        return JSONResponse({"ok": True}, status_code=202)

    return Starlette(routes=[Route(PATH, receive, methods=["POST"])])


def arq(redis_url: str) -> Any:
    """The same with arq, which is asynchronous throughout."""
    from arq import create_pool
    from arq.connections import RedisSettings
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route
    from svix.webhooks import Webhook

    webhook = Webhook(SECRET)
    settings = RedisSettings(unix_socket_path=unquote(redis_url.removeprefix("unix://")))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.pool = await create_pool(settings)
        yield
        await app.state.pool.aclose()

    async def receive(request: Request) -> JSONResponse:
        body = await request.body()
        webhook.verify(body, dict(request.headers))
        identity = json.loads(body)["id"]
        await request.app.state.pool.enqueue_job("persist", identity, _job_id=identity)
        return JSONResponse({"ok": True}, status_code=202)

    return Starlette(routes=[Route(PATH, receive, methods=["POST"])], lifespan=lifespan)


def main() -> None:
    name, port, redis_url = sys.argv[1:]
    app = {"bare": bare, "rq": rq, "arq": arq}[name](redis_url)
    asyncio.set_event_loop(None)
    uvicorn.run(app, port=int(port), access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
