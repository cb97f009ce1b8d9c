import asyncio
import gzip
from pathlib import Path

import aiohttp
import pytest

from app.core.errors import OutkeepError, Permanent, Transient
from app.core.hosts import Origin
from app.receive.listening import free_port
from app.replicate.guard import GuardedResolver, guarded_session, network_errors
from tests.raw_host import Names, RawHost, Script, ok, raw_host, self_signed, then_reset, then_silence


async def get(session: aiohttp.ClientSession, url: str, *, seconds: float = 5) -> bytes:
    with network_errors("the host"):
        async with asyncio.timeout(seconds), session.get(url, allow_redirects=False) as response:
            return await response.read()


async def refusal(session: aiohttp.ClientSession, url: str) -> OutkeepError:
    with pytest.raises(OutkeepError) as caught:
        await get(session, url)
    return caught.value


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "0.0.0.0"]
)
def test_this_machine_cannot_be_reached_by_any_name(host: str) -> None:
    async def scenario() -> None:
        async with raw_host(ok(b"secret")) as server, guarded_session() as session:
            error = await refusal(session, f"http://{host}:{server.port}/")
            assert isinstance(error, Permanent)
            assert error.code == "address_refused"
            assert server.connections == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("host", ["127.1", "2130706433", "017700000001", "①②⑦.⓪.⓪.①"])
def test_odd_spellings_of_an_address_are_not_understood(host: str) -> None:
    async def scenario() -> None:
        async with raw_host(ok(b"secret")) as server, guarded_session() as session:
            error = await refusal(session, f"http://{host}:{server.port}/")
            assert error.code in {"address_refused", "url_malformed"}
            assert server.connections == 0

    asyncio.run(scenario())


def test_trust_in_one_origin_opens_neither_another_port_nor_another_scheme_nor_a_name() -> None:
    async def scenario() -> None:
        async with raw_host(ok(b"mine")) as trusted, raw_host(ok(b"secret")) as other:
            origins = [Origin("http", "127.0.0.1", trusted.port)]
            async with guarded_session(origins=origins, names=Names(["127.0.0.1"])) as session:
                assert await get(session, f"http://127.0.0.1:{trusted.port}/") == b"mine"
                for url in (
                    f"http://127.0.0.1:{other.port}/",
                    f"https://127.0.0.1:{trusted.port}/",
                    f"http://name.test:{trusted.port}/",
                ):
                    assert (await refusal(session, url)).code == "address_refused"
            assert (trusted.connections, other.connections) == (1, 0)

    asyncio.run(scenario())


def test_a_trusted_name_may_lead_to_a_private_address_on_its_port_only() -> None:
    async def scenario() -> None:
        async with raw_host(ok(b"mine")) as trusted, raw_host(ok(b"secret")) as other:
            origins = [Origin("http", "minio.test", trusted.port)]
            async with guarded_session(origins=origins, names=Names(["127.0.0.1"])) as session:
                assert await get(session, f"http://MinIO.test:{trusted.port}/") == b"mine"
                assert (await refusal(session, f"http://minio.test:{other.port}/")).code == "address_refused"
            assert other.connections == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1", "192.168.0.1", "fd00::1"],
        ["64:ff9b::7f00:1"],
        ["64:ff9b::a9fe:a9fe", "64:ff9b::a00:1"],
        ["64:ff9b:1::808:808"],
        ["169.254.169.254"],
        ["fe80::1%eth0"],
        ["::ffff:8.8.8.8"],
        ["nonsense"],
    ],
)
def test_a_name_without_an_address_that_is_public_is_refused(addresses: list[str]) -> None:
    async def scenario() -> None:
        async with guarded_session(names=Names(addresses)) as session:
            error = await refusal(session, "http://name.test/")
            assert isinstance(error, Permanent)
            assert error.code == "address_refused"
            assert addresses[0] in error.message

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("addresses", "good"),
    [
        (["8.8.8.8", "10.0.0.1"], ["8.8.8.8"]),
        (["10.0.0.1", "8.8.8.8"], ["8.8.8.8"]),
        (["64:ff9b::808:808"], ["64:ff9b::808:808"]),
        (["64:ff9b::22:6688", "34.102.136.180"], ["34.102.136.180"]),  # 0.34.102.136
        (["64:ff9b::7f00:1", "2606:4700::1111"], ["2606:4700::1111"]),
        (["64:ff9b::1.1.1.1", "64:ff9b::169.254.169.254"], ["64:ff9b::1.1.1.1"]),
        (["127.0.0.1", "nonsense", "64:ff9b::8.8.4.4", "1.1.1.1"], ["64:ff9b::8.8.4.4", "1.1.1.1"]),
        (["198.18.0.7", "8.8.8.8"], ["8.8.8.8"]),
    ],
)
def test_of_mixed_addresses_only_good_ones_are_connected_to(addresses: list[str], good: list[str]) -> None:
    async def scenario() -> None:
        resolver = GuardedResolver(Names(addresses), trusted=(), private=False)
        assert [result["host"] for result in await resolver.resolve("name.test", 443)] == good

    asyncio.run(scenario())


@pytest.mark.parametrize("bad", ["169.254.169.254", "64:ff9b::169.254.169.254", "0.0.0.0", "fe80::1%lo"])
def test_an_address_beside_a_refused_one_serves(bad: str) -> None:
    async def scenario() -> None:
        async with (
            raw_host(ok(b"mine")) as server,
            guarded_session(private=True, names=Names([bad, "127.0.0.1"])) as session,
        ):
            assert await get(session, f"http://name.test:{server.port}/") == b"mine"

    asyncio.run(scenario())


@pytest.mark.parametrize("address", ["198.18.0.1", "198.19.255.254", "64:ff9b::198.18.0.1"])
@pytest.mark.parametrize("private", [False, True])
def test_an_address_of_a_fake_ip_proxy_is_refused_with_what_to_do(address: str, private: bool) -> None:  # noqa: FBT001
    async def scenario() -> None:
        async with guarded_session(names=Names([address]), private=private) as session:
            error = await refusal(session, "http://name.test/")
            assert error.code == "address_refused"
            assert address in error.message
            assert "fake-IP" in error.message
            assert "OUTKEEP_PROXY" in error.message

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "host", ["[64:ff9b::808:808]", "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b::]", "198.18.0.1"]
)
def test_an_address_of_dns64_in_a_url_is_refused(host: str) -> None:
    async def scenario() -> None:
        async with guarded_session() as session, guarded_session(private=True) as private:
            for one in (session, private):
                assert (await refusal(one, f"http://{host}/")).code == "address_refused"

    asyncio.run(scenario())


@pytest.mark.parametrize("statuses", [False, True], ids=["outputs", "handlers"])
@pytest.mark.parametrize(
    ("host", "certificate", "is_good"),
    [
        ("my_hooks.storage.test", "*.storage.test", True),
        ("my_hooks.storage.test", "my_hooks.storage.test", True),
        ("My_Hooks.Storage.test", "*.storage.TEST", True),
        ("a_b.eu.storage.test", "*.eu.storage.test", True),
        ("my_hooks.storage.test", "my-hooks.storage.test", False),
        ("my_hooks.storage.test", "*.test", False),
        ("my_hooks.storage.test", "storage.test", False),
        ("a.my_hooks.storage.test", "*.storage.test", False),
    ],
)
def test_a_host_with_underscores_is_known_by_its_certificate_or_a_wildcard(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    certificate: str,
    *,
    is_good: bool,
    statuses: bool,
) -> None:
    tls, _ = self_signed(tmp_path, certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))

    async def scenario() -> str:
        async with (
            raw_host(ok(b"mine"), tls=tls) as server,
            guarded_session(private=True, statuses=statuses, names=Names(["127.0.0.1"])) as session,
        ):
            url = f"https://{host}:{server.port}/"
            if is_good:
                return (await get(session, url)).decode()
            return (await refusal(session, url)).code

    assert asyncio.run(scenario()) == ("mine" if is_good else "tls_failed")


def test_the_address_connected_to_is_the_one_checked_for_a_name_that_changes() -> None:
    async def scenario() -> None:
        names = Names(["127.0.0.1"], ["169.254.169.254"])
        async with raw_host(ok(b"checked")) as server, guarded_session(private=True, names=names) as session:
            assert await get(session, f"http://name.test:{server.port}/") == b"checked"
            assert names.calls == 1

    asyncio.run(scenario())


def test_private_opens_ones_own_network_and_not_the_metadata_address() -> None:
    async def scenario() -> None:
        async with raw_host(ok(b"mine")) as server, guarded_session(private=True) as session:
            assert await get(session, f"http://127.0.0.1:{server.port}/") == b"mine"
            assert await get(session, f"http://localhost:{server.port}/") == b"mine"
            assert (await refusal(session, "http://169.254.169.254/")).code == "address_refused"

    asyncio.run(scenario())


@pytest.mark.parametrize("statuses", [False, True])
def test_a_connection_serves_again_when_its_answers_are_in_order(*, statuses: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(5):
            if number:
                await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" + ok(b"again"))
            await writer.drain()

    async def scenario() -> int:
        async with raw_host(serve) as server, guarded_session(private=True, statuses=statuses) as session:
            for _ in range(5):
                assert await get(session, f"http://127.0.0.1:{server.port}/") == b"again"
            return server.connections

    assert asyncio.run(scenario()) == 1


def test_requests_carry_no_cookie_no_password_and_ask_for_no_compression(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    packed = gzip.compress(b"a" * 1000)

    async def scenario() -> RawHost:
        answer = ok(packed, "Content-Encoding: gzip", "Set-Cookie: a=b; Path=/")
        async with raw_host(answer) as server, guarded_session(private=True) as session:
            for _ in range(2):
                assert await get(session, f"http://localhost:{server.port}/") == packed
            return server

    server = asyncio.run(scenario())
    for head in server.heads:
        assert b"\r\nAccept-Encoding: identity\r\n" in head
        assert b"cookie" not in head.lower()
        assert b"authorization" not in head.lower()


def test_a_proxy_may_be_private_and_does_not_open_private_targets() -> None:
    async def scenario() -> None:
        async with raw_host(ok(b"through")) as proxy:
            async with guarded_session(proxy=f"http://localhost:{proxy.port}") as session:
                assert await get(session, "http://files.test/a") == b"through"
                assert (await refusal(session, "http://127.0.0.1/")).code == "address_refused"
                assert (await refusal(session, f"http://[::1]:{proxy.port}/")).code == "address_refused"
            assert [head.split(b" ")[1] for head in proxy.heads] == [b"http://files.test/a"]

    asyncio.run(scenario())


@pytest.mark.parametrize("proxy", ["proxy.internal:3128", "http://a..b:3128", "socks5://proxy:1080"])
def test_a_proxy_that_cannot_be_read_is_not_laid_to_the_urls_that_are_asked_for(proxy: str) -> None:
    async def scenario() -> None:
        with pytest.raises(Permanent) as caught:
            guarded_session(proxy=proxy)
        assert caught.value.code == "bad_url"

    asyncio.run(scenario())


@pytest.mark.parametrize("host", ["a..b", ".", f"{'a' * 64}.example"])
def test_a_name_that_cannot_be_looked_up_is_told_as_one(host: str) -> None:
    async def scenario() -> None:
        async with guarded_session() as session:
            error = await refusal(session, f"http://{host}/")
            assert isinstance(error, Transient)
            assert error.code == "dns_failed"

    asyncio.run(scenario())


def test_each_failure_of_the_network_has_its_code() -> None:
    reset = then_reset(b"")  # twice: aiohttp asks once more after a GET that ended in a reset
    answers: list[bytes | Script] = [
        ok(b"", status="407 Who"),
        b"SSH-2.0-x\r\n",
        reset,
        reset,
        then_silence(b""),
    ]

    async def scenario() -> None:
        async with (
            raw_host(*answers) as server,
            guarded_session(private=True) as session,
            guarded_session(names=Names([])) as nameless,
            guarded_session(proxy=f"http://127.0.0.1:{server.port}") as refused,
            guarded_session(proxy=f"http://127.0.0.1:{free_port()}") as unreachable,
        ):
            url = f"http://127.0.0.1:{server.port}/"
            codes = [
                await refusal(refused, "https://files.test/"),
                await refusal(unreachable, "https://files.test/"),
                await refusal(session, url),
                await refusal(session, url),
                await refusal(nameless, "http://files.test/"),
                await refusal(session, f"http://127.0.0.1:{free_port()}/"),
            ]
            assert all(isinstance(error, Transient) for error in codes)
            assert [error.code for error in codes] == [
                "proxy_failed",
                "proxy_failed",
                "answer_malformed",
                "connection_reset",
                "dns_failed",
                "connect_failed",
            ]
            with pytest.raises(Transient) as caught:
                await get(session, url, seconds=0.2)
            assert caught.value.code == "stalled"

    asyncio.run(scenario())
