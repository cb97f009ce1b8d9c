"""Our calls of Replicate's API: against the simulator, and against hosts that answer badly."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.core.errors import OutkeepError, Permanent, Transient
from app.core.names import Kind
from app.core.notation import api_url
from app.core.request import Model
from app.replicate.client import MAX_ANSWER, connected
from app.replicate.creation import creating
from app.simulator import Simulator
from tests.raw_host import ok, raw_host, then_for_ever, then_silence
from tests.serving import Answering, serving

PREDICTION = Kind.PREDICTION


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
        (ok(b'{"output": [' + b"{}," * 2_000_000 + b"1]}"), Permanent, "api_too_large"),
        (ok(b"{" + b"[[[[[[" * 500_000, status="500 Oops"), Transient, "api_failed"),
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


@pytest.mark.parametrize("origin", ["http://127.0.0.2:1", "https://u@x.test", "https://api.replicate.com"])
def test_a_next_page_on_another_host_is_asked_for_where_the_api_is(origin: str) -> None:
    async def ask() -> tuple[list[bytes], list[Any]]:
        first = json.dumps({"next": f"{origin}/v1/predictions?cursor=x", "results": []}).encode()
        async with raw_host(ok(first), ok(b'{"results": []}')) as host:
            async with connected(f"http://127.0.0.1:{host.port}", "t") as api:
                items = [one async for one in api.newest(PREDICTION)]
            return [head.partition(b"\r\n")[0] for head in host.heads], items

    assert asyncio.run(ask()) == (
        [b"GET /v1/predictions HTTP/1.1", b"GET /v1/predictions?cursor=x HTTP/1.1"],
        [],
    )


@pytest.mark.parametrize("cursors", ["a", "aa", "ab", "abb", "abc", "abcb"])
def test_a_list_that_leads_back_to_where_it_was_has_an_end(cursors: str) -> None:
    """Each page names the next one, and the last an earlier one, or itself."""
    names = iter(cursors)
    known: dict[bytes, str] = {}

    async def ask() -> None:
        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            following = known.setdefault(host.heads[-1].split()[1], next(names, cursors[0]))
            url = f"https://api.replicate.com/v1/predictions?cursor={following}"
            writer.write(ok(json.dumps({"results": [], "next": url}).encode()))

        async with raw_host(answer) as host, connected(f"http://127.0.0.1:{host.port}", "t") as api:
            with pytest.raises(Transient, match="leads back"):
                async with asyncio.timeout(30):
                    [one async for one in api.newest(PREDICTION)]

    asyncio.run(ask())


@dataclass(frozen=True)
class Gateway:
    """A proxy with paths of its own before the simulator; lists name another origin for what follows."""

    url: str
    simulator: Simulator
    asked: list[str]


@contextmanager
def gateway(simulator: Simulator, prefix: str, *, is_root: bool, names: str) -> Iterator[Gateway]:
    """With `is_root` what follows `prefix` has no `/v1`; `names` is what lists name in its place."""
    asked: list[str] = []

    class Handler(Answering):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            path = self.path.removeprefix(prefix)
            if not self.path.startswith(f"{prefix}/") or path.startswith("/v1/") == is_root:
                self.answer(404, b"{}")
                return
            url = f"{simulator.url}{'' if path.startswith('/v1/') else '/v1'}{path}"
            headers = {"authorization": self.headers["authorization"], "content-type": "application/json"}
            with httpx.Client(trust_env=False, verify=False) as client:
                found = client.request(self.command, url, content=self.body(), headers=headers)
            answer = found.content.replace(f"{simulator.url}/v1".encode(), names.encode())
            self.answer(found.status_code, answer)

        def do_POST(self) -> None:
            self.do_GET()

    with serving(Handler) as url:
        yield Gateway(f"{url}{prefix}", simulator, asked)


@pytest.mark.parametrize("names", ["https://api.replicate.com/v1", "http://inside:8080/replicate", ""])
@pytest.mark.parametrize(
    ("prefix", "is_root"),
    [("", False), ("/proxy", False), ("/a/b", False), ("/v1/account/name/replicate", True), ("/x", True)],
)
def test_a_gateway_is_asked_for_everything_wherever_its_answers_point(
    prefix: str,
    is_root: bool,  # noqa: FBT001 - pytest passes it by name
    names: str,
) -> None:
    async def ask(url: str, token: str) -> tuple[list[str], str, str]:
        async with connected(api_url(url), token) as api, creating(api_url(url), token) as creator:
            listed = [item["id"] async for item in api.newest(PREDICTION)]
            one = await creator.create(Model("outkeep/image"), {}, webhook=None, events=())
            two = await creator.create(Model("outkeep/community"), {}, webhook=None, events=())
            assert (await api.one(PREDICTION, one["id"]))["id"] == one["id"]
            return listed, await api.webhook_secret(), two["model"]

    with Simulator() as fresh, gateway(fresh, prefix, is_root=is_root, names=names) as door:
        for number in range(250):
            fresh.finish(PREDICTION, finished(number))
        everything = [f"p{number:03}" for number in reversed(range(250))]
        for url in (door.url, *([] if is_root else [f"{door.url}/v1"])):
            listed, *others = asyncio.run(ask(url, fresh.token))
            assert (listed[-250:], others) == (everything, [fresh.secret, "outkeep/community"])
        assert all(path.startswith(f"{prefix}/") for path in door.asked)


@pytest.mark.parametrize(
    "following",
    [
        "https://api.replicate.com/v1/trainings?cursor=x",
        "https://api.replicate.com/v1/predictions",
        "/elsewhere?cursor=x",
        "http://[/predictions?cursor=x",
        "https://x/predictions?cursor=\r\nx",
        7,
    ],
)
def test_a_next_page_that_is_none_of_the_list_is_asked_for_again_later(following: Any) -> None:
    async def ask() -> str:
        page = json.dumps({"results": [], "next": following}).encode()
        async with raw_host(ok(page)) as host, connected(f"http://127.0.0.1:{host.port}", "t") as api:
            with pytest.raises(Transient) as raised:
                await api.page(PREDICTION)
        return raised.value.code

    assert asyncio.run(ask()) == "api_failed"
