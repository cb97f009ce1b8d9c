"""The event stream: bounded, and no burden to deliveries or to the end of the receiver."""

import asyncio
import http.client
from pathlib import Path

from redis import Redis
from starlette.requests import Request
from starlette.responses import StreamingResponse

from app.accept.changes import Change
from app.core.names import Kind
from app.web.stream import MOST, QUEUED, Stream
from tests.receive.web import prediction
from tests.web.api import AUTHORIZED, Api, serving


def opened(api: Api) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", api.web.port, timeout=60)
    connection.request("GET", "/api/v1/stream", headers=AUTHORIZED)
    return connection, connection.getresponse()


def test_streams_are_bounded_change_nothing_for_deliveries_and_end_with_the_receiver(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    with serving(redis, valkey_url, tmp_path) as api:
        streams = [opened(api) for _ in range(MOST)]
        assert {answer.status for _, answer in streams} == {200}
        refused = api.ask("GET", "/stream")
        assert (refused.status, refused.json()["code"]) == (503, "too_many_streams")
        assert api.web.outcome(prediction("abc")) == "accepted"
    # Each has come to its end: what is cut off raises `IncompleteRead`.
    assert all(b"retry: 2000" in answer.read() for _, answer in streams)
    for connection, _ in streams:
        connection.close()


def test_the_stream_of_who_reads_nothing_ends(redis: Redis) -> None:
    async def read_late() -> list[bytes | str | memoryview]:
        stream = Stream(redis)
        request = Request({"type": "http", "method": "GET", "path": "/", "headers": []})
        answer = await stream.answer(request)
        assert isinstance(answer, StreamingResponse)
        stream.publish(
            [Change(f"{number}-0", "stored", Kind.PREDICTION, "abc") for number in range(QUEUED + 2)]
        )
        await asyncio.sleep(0)
        return [piece async for piece in answer.body_iterator]

    assert asyncio.run(read_late()) == [b"retry: 2000\n\n"]
