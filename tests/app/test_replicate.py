"""Our calls of Replicate's API: against the simulator, and against hosts that answer badly."""

import asyncio
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.api_answers import MAX_ANSWER
from app.core.errors import OutkeepError, Permanent, Transient
from app.core.names import Kind
from app.replicate import connected
from app.simulator import Simulator
from tests.raw_host import ok, raw_host, then_for_ever, then_silence

PREDICTION = Kind.PREDICTION


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator() as running:
        yield running


def finished(number: int) -> dict[str, Any]:
    created = datetime.fromisoformat("2026-03-16T10:00:00+00:00") + timedelta(seconds=number)
    at = created.isoformat().replace("+00:00", "Z")
    return {"id": f"p{number:03}", "status": "succeeded", "created_at": at, "completed_at": at, "logs": "l"}


def test_a_single_prediction_comes_back_as_it_is(simulator: Simulator) -> None:
    simulator.finish(PREDICTION, finished(0) | {"odd": [1.5, None]})

    async def ask() -> dict[str, Any]:
        async with connected(simulator.url, simulator.token) as api:
            return await api.one(PREDICTION, "p000")

    assert asyncio.run(ask()) == finished(0) | {"odd": [1.5, None]}


def test_a_list_is_read_over_all_its_pages_newest_first(simulator: Simulator) -> None:
    for number in range(250):
        simulator.finish(PREDICTION, finished(number))

    async def ask(**wanted: Any) -> list[str]:
        async with connected(simulator.url, simulator.token) as api:
            return [item["id"] async for item in api.newest(PREDICTION, **wanted)]

    everything = [f"p{number:03}" for number in reversed(range(250))]
    assert asyncio.run(ask()) == everything
    since = datetime.fromisoformat(finished(200)["created_at"])
    assert asyncio.run(ask(created_after=since)) == everything[:50]


def test_the_webhook_secret_is_told(simulator: Simulator) -> None:
    async def ask() -> str:
        async with connected(simulator.url, simulator.token) as api:
            return await api.webhook_secret()

    assert asyncio.run(ask()) == simulator.secret


def failure(*answers: Any, path: str = "/v1/predictions/x", timeout: float = 30) -> OutkeepError:
    async def ask() -> OutkeepError:
        async with raw_host(*answers) as host:
            base_url = f"http://127.0.0.1:{host.port}"
            async with connected(base_url, "canary-token") as api:
                with pytest.raises(OutkeepError) as raised:
                    await api.get(path, timeout=timeout)
        assert all(b"authorization: bearer canary-token" in head.lower() for head in host.heads)
        return raised.value

    return asyncio.run(ask())


PROBLEM = json.dumps({"title": "t", "detail": "why it is", "status": 400}).encode()


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (ok(PROBLEM, status="401 Unauthorized"), Permanent, "api_refused"),
        (ok(PROBLEM, status="402 Payment Required"), Permanent, "api_unpaid"),
        (ok(PROBLEM, status="404 Not Found"), Permanent, "api_absent"),
        (ok(PROBLEM, status="422 Unprocessable"), Permanent, "api_rejected"),
        (ok(PROBLEM, status="500 Oops"), Transient, "api_failed"),
        (ok(b"<html>bad gateway</html>", status="502 Bad Gateway"), Transient, "api_failed"),
        (ok(b"<html>hello</html>"), Transient, "api_failed"),
        (ok(b"[1]"), Transient, "api_failed"),
        (ok(b"", "Location: http://127.0.0.1:1/", status="302 Found"), Transient, "api_failed"),
        (b"nonsense\r\n\r\n", Transient, "api_unreachable"),
        (b"", Transient, "api_unreachable"),
    ],
)
def test_each_bad_answer_has_a_code_and_shows_no_token(
    answer: bytes, kind: type[OutkeepError], code: str
) -> None:
    error = failure(answer)
    assert (type(error), error.code) == (kind, code)
    assert "canary-token" not in error.message


@pytest.mark.parametrize("netrc", ["default login canary password canary", "what nobody can read"])
def test_passwords_that_lie_about_on_this_host_do_not_stand_in_the_way_of_the_token(
    netrc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "netrc").write_text(netrc)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert failure(ok(PROBLEM, status="404 Not Found")).code == "api_absent"
    assert caplog.messages == []


def test_a_proxy_of_the_environment_is_used_unless_the_host_is_exempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        async with raw_host(ok(b'{"key": "through"}')) as proxy, raw_host(ok(b'{"key": "direct"}')) as host:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            async with connected("http://api.test", "t") as api:
                assert await api.webhook_secret() == "through"
            async with connected(f"http://127.0.0.1:{host.port}", "t") as api:
                assert await api.webhook_secret() == "direct"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("headers", "body", "wait"),
    [
        (["Retry-After: 7"], b"{}", 7.0),
        ([], b'{"detail": "slow down", "retry_after": 12}', 12.0),
        (["Retry-After: 7"], b'{"retry_after": 12}', 7.0),
        (["Retry-After: abc"], b'{"retry_after": "soon"}', None),
        ([], b"<html>", None),
    ],
)
def test_too_many_requests_say_how_long_to_wait(headers: list[str], body: bytes, wait: float | None) -> None:
    error = failure(ok(body, *headers, status="429 Too Many Requests"))
    assert isinstance(error, Transient)
    assert (error.code, error.retry_after) == ("api_busy", wait)


def test_silence_ends_at_the_time_out() -> None:
    error = failure(then_silence(b""), timeout=0.2)
    assert isinstance(error, Transient)
    assert error.code == "api_unreachable"


def test_a_page_of_inline_outputs_may_be_larger_than_what_we_hold() -> None:
    outputs = ["x" * 1_000_000, ["a", "b"], {"deep": [{"text": '"' * 40_000}]}]
    items = [finished(number) | {"output": outputs[number % 3]} for number in range(210)]
    body = json.dumps({"next": None, "results": items}).encode()
    assert len(body) > MAX_ANSWER

    async def ask() -> list[dict[str, Any]]:
        async with raw_host(ok(body)) as host, connected(f"http://127.0.0.1:{host.port}", "t") as api:
            return list((await api.page(PREDICTION)).items)

    short = [None, ["a", "b"], None]
    assert asyncio.run(ask()) == [item | {"output": short[n % 3]} for n, item in enumerate(items)]


def test_an_answer_has_its_limit_and_so_has_what_is_left_of_a_page() -> None:
    endless = then_for_ever(b"HTTP/1.1 200 OK\r\n\r\n{", b" " * (1 << 20))

    async def ask() -> list[str]:
        codes = []
        async with raw_host(endless) as host, connected(f"http://127.0.0.1:{host.port}", "t") as api:
            for call in (api.one(PREDICTION, "x"), api.page(PREDICTION)):
                with pytest.raises(Permanent) as raised:
                    await call
                codes.append(raised.value.code)
        return codes

    assert asyncio.run(ask()) == ["api_too_large"] * 2


@pytest.mark.parametrize(
    "following", ["http://127.0.0.2:1/v1/predictions?cursor=x", "{}@x.test/v1", "{}0/v1"]
)
def test_a_next_page_on_another_host_is_not_asked_for(following: str) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("sockname")[1]
        after = following.format(f"http://127.0.0.1:{port}")
        writer.write(ok(json.dumps({"next": after, "results": []}).encode()))

    async def ask() -> None:
        async with raw_host(answer) as host, connected(f"http://127.0.0.1:{host.port}", "t") as api:
            with pytest.raises(Permanent, match="does not lie at"):
                await api.page(PREDICTION)

    asyncio.run(ask())


def test_a_page_that_leads_back_to_itself_ends_the_list() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("sockname")[1]
        following = f"http://127.0.0.1:{port}/v1/predictions?cursor=a"
        writer.write(ok(json.dumps({"results": [], "next": following}).encode()))

    async def ask() -> None:
        async with raw_host(answer) as host, connected(f"http://127.0.0.1:{host.port}", "t") as api:
            with pytest.raises(Transient, match="leads back"):
                [one async for one in api.newest(PREDICTION)]

    asyncio.run(ask())
