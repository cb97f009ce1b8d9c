import asyncio
import hashlib
import os
import shutil
import stat
import sys
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.core.errors import OutkeepError, Permanent, StorageFailure, Transient
from app.core.hosts import HostRules
from app.replicate.guard import guarded_session
from tests import forked
from tests.raw_host import (
    Names,
    RawHost,
    Script,
    chunked,
    ok,
    raw_host,
    self_signed,
    then_for_ever,
    then_reset,
    then_silence,
)
from workers.keep.download import MEMORY, Fetched, Memory
from workers.keep.fetch import Fetcher

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 100
PAGE = b"<!DOCTYPE html><title>502 Bad Gateway</title>"
SILENT_START = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nabc"
CHUNKED_START = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def fetcher_of(
    *hosts: RawHost,
    folder: Path,
    max_bytes: int = 1_000_000,
    stall_seconds: float = 5,
    floor: int | None = 0,
    memory: int = MEMORY,
) -> AsyncIterator[Fetcher]:
    rules = HostRules.parse(
        " ".join(["replicate.delivery", *(f"http://127.0.0.1:{host.port}" for host in hosts)])
    )
    async with guarded_session(origins=rules.origins) as session:
        yield Fetcher(
            session,
            rules,
            folder,
            max_bytes=max_bytes,
            disk_floor=floor,
            memory=Memory(memory),
            stall_seconds=stall_seconds,
        )


async def until_a_file_is_open(running: asyncio.Future[Fetched], folder: Path) -> None:
    while not os.listdir(folder):  # noqa: PTH208 - the loop may wait for this
        await asyncio.wait([running], timeout=0.01)


def url_of(host: RawHost, path: str = "/a.png") -> str:
    return f"http://127.0.0.1:{host.port}{path}"


def fetched(
    folder: Path,
    *answers: bytes | Script,
    path: str = "/a.png",
    max_bytes: int = 1_000_000,
    memory: int = MEMORY,
) -> Fetched:
    async def scenario() -> Fetched:
        async with (
            raw_host(*answers) as host,
            fetcher_of(host, folder=folder, max_bytes=max_bytes, memory=memory) as fetcher,
        ):
            return await fetcher.fetch(url_of(host, path), timeout=10)

    return asyncio.run(scenario())


def failure(
    folder: Path,
    *answers: bytes | Script,
    max_bytes: int = 1_000_000,
    stall: float = 5,
    seconds: float = 10,
    floor: int | None = 0,
    memory: int = 0,
) -> OutkeepError:
    """Fetch, expect an error, and see that nothing stays behind."""

    async def scenario() -> OutkeepError:
        async with (
            raw_host(*answers) as host,
            fetcher_of(
                host, folder=folder, max_bytes=max_bytes, stall_seconds=stall, floor=floor, memory=memory
            ) as fetcher,
        ):
            with pytest.raises(OutkeepError) as caught:
                await fetcher.fetch(url_of(host), timeout=seconds)
            return caught.value

    error = asyncio.run(scenario())
    assert list(folder.iterdir()) == []
    return error


@pytest.mark.parametrize(
    "answer",
    [
        ok(PNG, "Content-Type: image/png; x=y"),
        ok(PNG, "Content-Type: image/png", "Connection: close"),
        ok(PNG, "Content-Type: IMAGE/PNG", f"Content-Length: {len(PNG)}", "Content-Encoding: identity"),
        chunked(PNG[:9], PNG[9:]).replace(b"\r\n\r\n", b"\r\nContent-Type: image/png\r\n\r\n", 1),
    ],
)
@pytest.mark.parametrize("memory", [MEMORY, 0], ids=["memory", "disk"])
def test_a_file_arrives_byte_for_byte_with_its_hash(tmp_path: Path, answer: bytes, memory: int) -> None:
    result = fetched(tmp_path, answer, memory=memory)
    assert result.read() == PNG
    assert (result.path is None) == bool(memory)
    assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()] == [0o600] * (not memory)
    assert (result.size, result.digest()) == (len(PNG), hashlib.sha256(PNG).hexdigest())
    assert (result.head, result.content_type) == (PNG[:4096], "image/png")


@pytest.mark.parametrize("header", ["Connection: keep-alive", "Connection: close"])
def test_a_long_file_arrives_from_a_host_that_closes_at_once(tmp_path: Path, header: str) -> None:
    body = os.urandom(5_000_000)
    result = fetched(tmp_path, ok(body, header), max_bytes=len(body))
    assert (result.size, result.sha256) == (len(body), hashlib.sha256(body).hexdigest())


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (ok(b"", status="404 Not Found"), "not_found"),
        (ok(PAGE, status="410 Gone"), "gone"),
        (ok(b"", "Content-Length: 1000001"), "too_large"),
        (then_for_ever(CHUNKED_START, b"186a0\r\n" + b"a" * 100_000 + b"\r\n"), "too_large"),
    ],
)
def test_what_time_cannot_heal_is_permanent(tmp_path: Path, answer: bytes | Script, code: str) -> None:
    error = failure(tmp_path, answer)
    assert isinstance(error, Permanent)
    assert error.code == code


def bare(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode() + body


@pytest.mark.parametrize(
    ("answer", "codes"),
    [
        (ok(b"", status="403 Forbidden"), {"forbidden"}),
        (ok(b"", status="429 Too Many Requests"), {"busy"}),
        (ok(PAGE, status="500 Oops"), {"server_error"}),
        (b"HTTP/1.1 204 No Content\r\n\r\n", {"status_unexpected"}),
        (
            ok(PNG, f"Content-Range: bytes 0-9/{len(PNG)}", status="206 Partial Content"),
            {"status_unexpected"},
        ),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", {"status_unexpected"}),
        (ok(b"", status="302 Found"), {"status_unexpected"}),
        (bare("Content-Length: 10", body=b"short"), {"body_incomplete"}),
        (bare("Content-Length: 4", body=b"longer"), {"answer_malformed", "body_too_long"}),
        (
            bare("Content-Length: 4", "Connection: close", body=b"longer"),
            {"answer_malformed", "body_too_long"},
        ),
        (bare(body=PNG), {"body_incomplete"}),
        (bare("Connection: close", body=PNG), {"body_incomplete"}),
        (b"HTTP/1.0 200 OK\r\n\r\n" + PNG, {"body_incomplete"}),
        (chunked(b"abc", end=b""), {"body_incomplete"}),
        (chunked(end=b"a\r\nabc"), {"body_incomplete"}),
        (chunked(end=b"zz\r\nabc\r\n"), {"answer_malformed", "body_incomplete"}),
        (
            bare("Content-Length: 5", "Content-Length: 6", body=b"12345"),
            {"answer_malformed", "length_unclear"},
        ),
        (bare("Content-Length: -5", body=b"12345"), {"answer_malformed"}),
        (
            bare("Content-Length: 5", "Transfer-Encoding: chunked", body=b"5\r\n12345\r\n0\r\n\r\n"),
            {"answer_malformed", "length_unclear"},
        ),
        (ok(b""), {"body_empty"}),
        (chunked(), {"body_empty"}),
        (ok(PAGE, "Content-Type: text/html; charset=utf-8"), {"html_instead"}),
        (b"nonsense\r\n\r\n", {"answer_malformed"}),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", {"answer_malformed"}),
        (then_reset(b""), {"connection_reset"}),
        (then_reset(SILENT_START), {"body_incomplete", "connection_reset"}),
    ],
)
def test_an_answer_that_is_not_a_whole_file_is_an_error_for_a_retry(
    tmp_path: Path, answer: bytes | Script, codes: set[str]
) -> None:
    error = failure(tmp_path, answer)
    assert isinstance(error, Transient)
    assert error.code in codes


@pytest.mark.parametrize(("value", "seconds"), [("5", 5.0), ("1000000000", 1e9), ("abc", None), ("-1", None)])
def test_the_wait_that_a_host_asks_for_is_told(tmp_path: Path, value: str, seconds: float | None) -> None:
    error = failure(tmp_path, ok(b"", f"Retry-After: {value}", status="503 Busy"))
    assert isinstance(error, Transient)
    assert error.retry_after == seconds


def test_a_longer_body_that_comes_after_its_head_is_noticed(tmp_path: Path) -> None:
    async def scenario() -> str:
        head_seen = asyncio.Event()

        async def head_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
            await head_seen.wait()
            writer.write(b"longer")
            await reader.read()

        async with raw_host(head_first) as host, fetcher_of(host, folder=tmp_path, memory=0) as fetcher:
            running = asyncio.ensure_future(fetcher.fetch(url_of(host), timeout=10))
            await until_a_file_is_open(running, tmp_path)
            head_seen.set()
            with pytest.raises(Transient) as caught:
                await running
            return caught.value.code

    assert asyncio.run(scenario()) == "body_too_long"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/page.html", "/page.htm?x=y"])
def test_a_page_that_was_asked_for_is_a_file(tmp_path: Path, path: str) -> None:
    assert fetched(tmp_path, ok(PAGE, "Content-Type: text/html"), path=path).size == len(PAGE)


def test_a_picture_declared_as_a_page_is_a_file(tmp_path: Path) -> None:
    assert fetched(tmp_path, ok(PNG, "Content-Type: text/html")).size == len(PNG)


def test_a_file_of_exactly_the_cap_is_kept_and_one_byte_more_is_not(tmp_path: Path) -> None:
    assert failure(tmp_path, chunked(PNG), max_bytes=len(PNG) - 1).code == "too_large"

    async def scenario() -> int:
        async with (
            raw_host(chunked(PNG)) as host,
            fetcher_of(host, folder=tmp_path, max_bytes=len(PNG)) as fetcher,
        ):
            return (await fetcher.fetch(url_of(host), timeout=10)).size

    assert asyncio.run(scenario()) == len(PNG)


@pytest.mark.parametrize(
    "answer",
    [
        then_silence(b""),
        then_silence(b"HTTP/1.1 200 OK\r\nContent-"),
        then_silence(SILENT_START),
        then_silence(CHUNKED_START),
        then_for_ever(SILENT_START, b"a", every=0.02),
        then_for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", every=0.02),
    ],
)
def test_silence_and_dripping_are_cut(tmp_path: Path, answer: Script) -> None:
    error = failure(tmp_path, answer, stall=0.3)
    assert isinstance(error, Transient)
    assert error.code == "stalled"


def test_a_download_ends_at_its_deadline_however_lively(tmp_path: Path) -> None:
    endless = then_for_ever(SILENT_START.replace(b"1000000", b"999999999"), b"a" * 70_000, every=0.01)
    error = failure(tmp_path, endless, max_bytes=10**9, seconds=0.5)
    assert isinstance(error, Transient)
    assert error.code == "deadline"


def test_a_cancelled_download_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            raw_host(then_silence(SILENT_START)) as host,
            fetcher_of(host, folder=tmp_path, memory=0) as fetcher,
        ):
            running = asyncio.ensure_future(fetcher.fetch(url_of(host), timeout=10))
            await until_a_file_is_open(running, tmp_path)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    asyncio.run(scenario())
    assert list(tmp_path.iterdir()) == []


def test_memory_stays_flat_however_long_the_file(tmp_path: Path) -> None:
    async def scenario() -> int:
        endless = then_for_ever(CHUNKED_START, b"10000\r\n" + b"a" * 65536 + b"\r\n")
        async with (
            raw_host(endless) as host,
            fetcher_of(host, folder=tmp_path, max_bytes=50_000_000) as fetcher,
        ):
            tracemalloc.start()
            with pytest.raises(Permanent):
                await fetcher.fetch(url_of(host), timeout=30)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            return peak

    assert asyncio.run(scenario()) < 8_000_000


@pytest.mark.parametrize(
    "path",
    ["/%28a%29/%7E%2F%2e.png?x=%2F+%20", "/(a)/~.png", "/é/名.png?ü", "//a/../b/./c", "/%zz?%", "/a'\"<>b"],
)
def test_a_url_is_requested_exactly_as_given(tmp_path: Path, path: str) -> None:
    async def scenario() -> list[bytes]:
        async with raw_host(ok(PNG)) as host, fetcher_of(host, folder=tmp_path) as fetcher:
            await fetcher.fetch(url_of(host, path), timeout=10)
            return host.heads

    [head] = asyncio.run(scenario())
    assert head.split(b"\r\n")[0] == b"GET " + path.encode() + b" HTTP/1.1"


def test_no_token_and_no_cookie_goes_to_a_file_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_canary")
    (tmp_path / "netrc").write_text("default login canary password canary\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    redirect = ok(b"", "Location: /b", "Set-Cookie: canary=1", status="302 Found")

    async def scenario() -> list[bytes]:
        async with raw_host(redirect, ok(PNG)) as host, fetcher_of(host, folder=tmp_path) as fetcher:
            await fetcher.fetch(url_of(host), timeout=10)
            return host.heads

    heads = asyncio.run(scenario())
    assert len(heads) == 2
    for head in heads:
        assert b"canary" not in head
        assert b"\r\nAccept-Encoding: identity\r\n" in head
        assert not {b"authorization", b"cookie", b"referer"} & {
            line.partition(b":")[0].lower() for line in head.split(b"\r\n")
        }


def test_a_redirect_is_followed_to_another_permitted_host(tmp_path: Path) -> None:
    async def scenario() -> tuple[Fetched, str]:
        async with raw_host(ok(PNG)) as second:
            target = url_of(second, "/%28b%29")
            async with (
                raw_host(ok(b"", f"Location: {target}", status="307 There")) as first,
                fetcher_of(first, second, folder=tmp_path) as fetcher,
            ):
                return await fetcher.fetch(url_of(first), timeout=10), target

    result, target = asyncio.run(scenario())
    assert (result.url, result.size) == (target, len(PNG))


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        (b"/my file.png", b"/my%20file.png"),
        (b"  /b.png\t", b"/b.png"),
        (b"b  c.png?x=1 2", b"/b%20%20c.png?x=1%202"),
        (b"/%28c%29 d\te", b"/%28c%29%20d%09e"),
        (b"/caf\xe9 1.png", b"/caf%E9%201.png"),
    ],
)
def test_blanks_in_a_redirect_are_cut_or_encoded(tmp_path: Path, location: bytes, asked: bytes) -> None:
    redirect = b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"

    async def scenario() -> list[bytes]:
        async with raw_host(redirect, ok(PNG)) as host, fetcher_of(host, folder=tmp_path) as fetcher:
            await fetcher.fetch(url_of(host), timeout=10)
            return host.heads

    _, head = asyncio.run(scenario())
    assert head.split(b"\r\n")[0] == b"GET " + asked + b" HTTP/1.1"


@pytest.mark.parametrize(
    "name", ["project_minio_1", "my_bucket.storage.test", "_x.y_", "Files_1.lan", "a_-b.c"]
)
def test_a_host_may_have_underscores_in_its_name(tmp_path: Path, name: str) -> None:
    async def scenario() -> list[bytes]:
        async with raw_host(ok(PNG)) as host:
            rules = HostRules.parse(f"http://{name}:{host.port}")
            async with guarded_session(origins=rules.origins, names=Names(["127.0.0.1"])) as session:
                fetcher = Fetcher(session, rules, tmp_path, max_bytes=1_000_000, disk_floor=0)
                await fetcher.fetch(f"http://{name}:{host.port}/a.png", timeout=10)
            return host.heads

    [head] = asyncio.run(scenario())
    assert f"\r\nhost: {name}:".encode().lower() in head.lower()


@pytest.mark.parametrize(
    ("certificate", "code"),
    [
        ("*.storage.test", None),
        ("my_bucket.storage.test", None),
        ("my-bucket.storage.test", "tls_failed"),
        ("*.test", "tls_failed"),
        ("storage.test", "tls_failed"),
    ],
)
def test_a_bucket_with_underscores_shows_a_certificate_of_its_own_or_a_wildcard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: str, code: str | None
) -> None:
    server, _ = self_signed(tmp_path, certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))

    async def scenario() -> str | None:
        async with raw_host(ok(PNG), tls=server) as host:
            origin = f"https://my_bucket.storage.test:{host.port}"
            rules = HostRules.parse(origin)
            async with guarded_session(origins=rules.origins, names=Names(["127.0.0.1"])) as session:
                fetcher = Fetcher(session, rules, tmp_path, max_bytes=1_000_000, disk_floor=0)
                try:
                    await fetcher.fetch(f"{origin}/a.png", timeout=10)
                except OutkeepError as error:
                    return error.code
                return None

    assert asyncio.run(scenario()) == code


def test_a_bucket_with_underscores_must_show_a_certificate_that_somebody_vouches_for(tmp_path: Path) -> None:
    result = over_tls(tmp_path, ok(PNG), trusting=False, name="files_1.test")
    assert isinstance(result, Transient)
    assert result.code == "tls_failed"


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("http://127.0.0.1:1/x", "host_refused"),
        ("http://169.254.169.254/latest/meta-data", "host_refused"),
        ("https://10.0.0.1/x", "host_refused"),
        ("https://[::1]/x", "host_refused"),
        ("https://example.com/x", "host_refused"),
        ("http://replicate.delivery/x", "scheme_refused"),
        ("file:///etc/passwd", "scheme_refused"),
        ("https://replicate.delivery:22/x", "port_refused"),
        ("https://user@replicate.delivery/x", "userinfo_refused"),
        ("http://[::1/x", "redirect_refused"),
        ("https:///x", "url_malformed"),
        ("/a.png", "too_many_redirects"),
    ],
)
def test_every_hop_is_checked_again(tmp_path: Path, location: str, code: str) -> None:
    error = failure(tmp_path, ok(b"moved", f"Location: {location}", status="302 Found"))
    assert isinstance(error, Permanent)
    assert error.code == code


def test_a_loop_ends_after_five_redirects(tmp_path: Path) -> None:
    async def scenario() -> int:
        loop = ok(b"", "Location: /a.png", status="302 Found")
        async with raw_host(loop) as host, fetcher_of(host, folder=tmp_path) as fetcher:
            with pytest.raises(Permanent):
                await fetcher.fetch(url_of(host), timeout=10)
            return len(host.heads)

    assert asyncio.run(scenario()) == 6


def over_tls(
    folder: Path, answer: bytes, *, trusting: bool, name: str = "files.test"
) -> Fetched | OutkeepError:
    server, client = self_signed(folder, name)
    spool = folder / "spool"
    spool.mkdir()

    async def scenario() -> Fetched | OutkeepError:
        async with raw_host(answer, tls=server) as host:
            rules = HostRules.parse(f"https://{name}:{host.port}")
            tls = client if trusting else None
            async with guarded_session(origins=rules.origins, tls=tls, names=Names(["127.0.0.1"])) as session:
                fetcher = Fetcher(session, rules, spool, max_bytes=1_000_000, disk_floor=0)
                try:
                    return await fetcher.fetch(f"https://{name}:{host.port}/a.png", timeout=10)
                except OutkeepError as error:
                    return error

    return asyncio.run(scenario())


def test_a_file_arrives_over_tls(tmp_path: Path) -> None:
    result = over_tls(tmp_path, ok(PNG), trusting=True)
    assert isinstance(result, Fetched)
    assert result.read() == PNG


def test_a_certificate_that_nobody_trusts_is_an_error_for_a_retry(tmp_path: Path) -> None:
    result = over_tls(tmp_path, ok(PNG), trusting=False)
    assert isinstance(result, Transient)
    assert result.code == "tls_failed"


def test_a_redirect_from_https_never_leads_down_to_http(tmp_path: Path) -> None:
    answer = ok(b"", "Location: http://files.test/a", status="302 Found")
    result = over_tls(tmp_path, answer, trusting=True)
    assert isinstance(result, Permanent)
    assert result.code == "redirect_refused"


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["10.0.0.2", "127.0.0.1"], ["169.254.169.254"]])
def test_a_permitted_name_that_leads_to_a_private_address_is_refused(
    tmp_path: Path, addresses: list[str]
) -> None:
    async def scenario() -> None:
        rules = HostRules.parse("replicate.delivery")
        async with guarded_session(origins=rules.origins, names=Names(addresses)) as session:
            with pytest.raises(Permanent) as caught:
                await Fetcher(session, rules, tmp_path, max_bytes=1, disk_floor=0).fetch(
                    "https://replicate.delivery/x", timeout=10
                )
            assert caught.value.code == "address_refused"

    asyncio.run(scenario())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    async def scenario(folder: Path) -> Transient:
        async with raw_host(ok(PNG)) as host, fetcher_of(host, folder=folder, memory=0) as fetcher:
            with pytest.raises(Transient) as caught:
                await fetcher.fetch(url_of(host), timeout=10)
            return caught.value

    (tmp_path / "file").touch()
    for folder in (tmp_path / "missing", tmp_path / "file"):
        error = asyncio.run(scenario(folder))
        assert error.code == "disk_error"
        assert str(folder) in error.message


@pytest.mark.parametrize(
    "answer",
    [
        then_for_ever(CHUNKED_START, b"10000\r\n" + b"a" * 65536 + b"\r\n"),
        then_silence(SILENT_START.replace(b"1000000", b"%d" % 2**30)),
    ],
    ids=["endless", "declared"],
)
def test_a_download_stops_at_the_disk_floor_and_does_not_begin_if_it_leads_there(
    tmp_path: Path, answer: Script
) -> None:
    floor = shutil.disk_usage(tmp_path).free - (64 << 20)
    error = failure(tmp_path, answer, max_bytes=2**30, seconds=60, floor=floor)
    assert (type(error), error.code) == (StorageFailure, "disk_floor")
    assert "OUTKEEP_DISK_FLOOR" in error.message


ON_A_BAD_DISK = """
import errno, sys
from pathlib import Path
from tests.kernel import fill_the_disk, forbid_new_files
from tests.raw_host import ok
from tests.keep.test_fetch import failure

{fault}
error = failure(Path(sys.argv[1]), ok(b"a" * 900_000))
print(type(error).__name__, error.code, error.message)
"""


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("fill_the_disk()", "disk_full no room for temporary files in {}: No space left on device"),
        ("forbid_new_files(errno.ENOSPC)", "disk_full no room for temporary files in {}: No space left"),
        ("forbid_new_files(errno.EROFS)", "disk_error temporary files cannot be written in {}: Read-only"),
    ],
    ids=["blocks", "inodes", "read-only"],
)
def test_a_full_disk_is_an_error_for_a_retry_and_is_empty_again(
    tmp_path: Path, fault: str, said: str
) -> None:
    command = [sys.executable, "-c", ON_A_BAD_DISK.format(fault=fault), str(tmp_path)]
    seen = forked.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)

    assert seen.stdout.startswith(f"StorageFailure {said.format(tmp_path)}"), seen.stderr
