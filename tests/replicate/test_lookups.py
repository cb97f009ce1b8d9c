"""Names: asked for in threads of their own, with an end, and remembered. The calls block as real ones do."""

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from app.core.errors import Crowded, OutkeepError, Transient
from app.replicate.guard import guarded_session
from app.replicate.lookups import THREADS, Found, Lookups
from tests.raw_host import ok, raw_host
from tests.replicate.test_guard import get

ADDRESS: Found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]


class NameServer:
    """What blocks for names below `silent`, until `release` is set; counts who asked."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.asked: Counter[str] = Counter()
        self.at_once = self.most = 0
        self._lock = threading.Lock()

    def ask(self, host: str, *_: Any, **__: Any) -> Found:
        with self._lock:
            self.asked[host] += 1
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        try:
            if "silent" in host:
                self.release.wait(60)
            if "missing" in host:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            if "invalid" in host:
                raise UnicodeError("label empty or too long")
            return ADDRESS
        finally:
            with self._lock:
                self.at_once -= 1


@pytest.fixture
def server() -> Iterator[NameServer]:
    found = NameServer()
    yield found
    found.release.set()


async def failure(names: Lookups, host: str) -> OutkeepError:
    with pytest.raises(OutkeepError) as caught:
        await names.resolve(host, 443)
    return caught.value


@pytest.mark.parametrize(
    "hosts",
    [
        [f"n{number}.silent.test" for number in range(8)],
        [f"n{number}.silent.test" for number in range(200)],
        [f"n{number}.silent{number % 5}.test" for number in range(200)],
        [f"silent{number}.test" for number in range(24)],
        ["silent.test"] * 200,
    ],
)
def test_a_silent_name_server_holds_up_no_other_name(server: NameServer, hosts: list[str]) -> None:
    """Others are looked up while all of them hang, and so is a file on this machine."""

    async def scenario() -> None:
        names = Lookups(server.ask, limit=30)
        waiting = [asyncio.create_task(names.resolve(host)) for host in hosts]
        await asyncio.sleep(0)
        for number in range(20):
            [found] = await names.resolve(f"other{number}.good.example", 443)
            assert (found["host"], found["port"]) == ("127.0.0.1", 443)
        async with raw_host(ok(b"mine")) as host, guarded_session(private=True, names=names) as session:
            assert await get(session, f"http://files.example:{host.port}/") == b"mine"
        await asyncio.sleep(0)
        assert any(not task.done() for task in waiting)
        assert server.most <= THREADS
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(scenario())


def test_names_of_one_domain_over_its_share_are_turned_away_and_nothing_was_tried(server: NameServer) -> None:
    async def scenario() -> None:
        names = Lookups(server.ask, limit=30)
        waiting = [asyncio.create_task(names.resolve(f"n{number}.silent.test")) for number in range(48)]
        done, pending = await asyncio.wait(waiting, timeout=20, return_when=asyncio.FIRST_EXCEPTION)
        while len(done) < 32:
            more, pending = await asyncio.wait(pending, timeout=20, return_when=asyncio.FIRST_EXCEPTION)
            done |= more
        assert {type(task.exception()) for task in done} == {Crowded}
        assert len(pending) == len(server.asked) == 16
        server.release.set()
        assert [len(await task) for task in pending] == [1] * 16

    asyncio.run(scenario())


def test_silence_has_an_end_and_is_remembered_and_a_late_answer_too(server: NameServer) -> None:
    async def scenario() -> None:
        names = Lookups(server.ask, limit=0.05)
        for _ in range(3):
            error = await failure(names, "silent.test")
            assert isinstance(error, Transient)
            assert error.code == "dns_failed"
            assert "silent.test" in error.message
            assert error.retry_after is not None
            assert 0 < error.retry_after <= 20
        assert server.asked["silent.test"] == 1
        server.release.set()
        while True:  # the answer comes by itself, from the thread that was left behind
            try:
                assert len(await names.resolve("silent.test")) == 1
                break
            except Transient:
                await asyncio.sleep(0.01)
        assert server.asked["silent.test"] == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "host", ["missing.test", "a.missing.example", "missing", "missing.co.uk", "b.missing"]
)
def test_a_name_that_is_missing_is_not_asked_for_again_at_once(server: NameServer, host: str) -> None:
    async def scenario() -> None:
        names = Lookups(server.ask)
        for _ in range(5):
            assert (await failure(names, host)).code == "dns_failed"
        assert sum(server.asked.values()) == 1

    asyncio.run(scenario())


def test_who_asks_at_once_for_one_name_shares_the_answer(server: NameServer) -> None:
    async def scenario() -> None:
        names = Lookups(server.ask)
        found = await asyncio.gather(*(names.resolve("one.test", port) for port in range(1, 101)))
        assert [result[0]["port"] for result in found] == list(range(1, 101))
        assert server.asked == Counter({"one.test": 1})

    asyncio.run(scenario())


def test_what_is_remembered_has_a_bound(server: NameServer) -> None:
    async def scenario() -> None:
        names = Lookups(server.ask)
        for number in range(1500):
            await names.resolve(f"n{number}.test")
        await names.resolve("n1499.test")
        await names.resolve("n0.test")
        assert (server.asked["n1499.test"], server.asked["n0.test"]) == (1, 2)

    asyncio.run(scenario())


@pytest.mark.parametrize("host", ["invalid.test", "a.invalid"])
def test_what_is_no_name_is_told_as_the_system_tells_it(server: NameServer, host: str) -> None:
    async def scenario() -> None:
        with pytest.raises(UnicodeError):
            await Lookups(server.ask).resolve(host)

    asyncio.run(scenario())


def test_the_systems_names_are_found() -> None:
    async def scenario() -> None:
        found = await Lookups().resolve("localhost", 80, socket.AF_INET)
        assert [(one["host"], one["port"]) for one in found] == [("127.0.0.1", 80)]

    asyncio.run(scenario())
