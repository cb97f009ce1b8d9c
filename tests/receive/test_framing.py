"""Where one request ends and the next begins: no proxy may see that otherwise than the receiver does."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest
from redis import Redis

from app.core.names import COG_PATH
from app.main import LIMITS
from tests.receive.web import WEBHOOK, Web, in_process, in_thread, prediction, signed

TOKEN = "a-token-of-cog-workers"
SMUGGLED = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
"""Answered with 404, and the end of what is read of a connection."""

UPGRADES = [
    b"connection: upgrade\r\nupgrade: websocket\r\n",
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nConnection: Upgrade, HTTP2-Settings\r\n",
    b"connection: keep-alive, Upgrade\r\nupgrade: anything/1, else\r\n",
    b"connection: upgrade\r\nconnection: keep-alive\r\nupgrade: a\r\nupgrade: b\r\n",
    b"proxy-connection: upgrade\r\nupgrade: TLS/1.0\r\n",
    b"upgrade: websocket\r\n",
    b"connection: upgrade\r\nupgrade:\r\n",
]


@pytest.fixture(scope="module")
def web(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    patient = replace(LIMITS, head_seconds=300, body_seconds=300, stall_seconds=300)
    with in_thread(
        valkey_url, tmp_path_factory.mktemp("framing"), patient, OUTKEEP_COG_TOKEN=TOKEN
    ) as running:
        yield running


@pytest.fixture
def witness(web: Web) -> Iterator[HTTPConnection]:
    """A connection on which a question tells that all that was sent before it has been read."""
    with closing(HTTPConnection("127.0.0.1", web.port, timeout=20)) as connection:
        yield connection


def exchange(web: Web, segments: Sequence[bytes], witness: HTTPConnection | None = None) -> list[int]:
    """The statuses of all answers to what is sent, each segment by itself where there is a witness."""
    with socket.create_connection(("127.0.0.1", web.port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        with suppress(BrokenPipeError, ConnectionResetError):
            for segment in segments:
                connection.sendall(segment)
                if witness is not None:
                    witness.request("GET", "/healthz")
                    assert witness.getresponse().read() == b"ok\n"
            while piece := connection.recv(65536):
                received += piece
    return [int(answer[:3]) for answer in received.split(b"HTTP/1.1 ")[1:]]


def request(
    body: bytes, *lines: bytes, start: bytes = b"POST /nowhere HTTP/1.1", chunked: bool = False
) -> tuple[bytes, bytes]:
    """Head and body as they are on the wire."""
    if chunked:
        half = len(body) // 2
        length = b"transfer-encoding: chunked\r\n"
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:], b""))
    else:
        length = b"content-length: %d\r\n" % len(body)
    return start + b"\r\nhost: x\r\n" + b"".join(lines) + length + b"\r\n", body


def proof(body: bytes, path: str) -> bytes:
    headers = {"authorization": f"Bearer {TOKEN}"} if path == COG_PATH else signed(body)
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("lines", UPGRADES)
@pytest.mark.parametrize("path", [WEBHOOK, f"{WEBHOOK}/trainings", COG_PATH])
def test_a_delivery_that_asks_for_an_upgrade_is_accepted(
    web: Web, redis: Redis, path: str, lines: bytes, *, chunked: bool
) -> None:
    body = prediction("upgrades", logs="x" * 100)
    start = f"POST {path} HTTP/1.1".encode()
    for part in (lines, b""):  # the second is a repeat: it tells that the connection goes on as it should
        head, wire = request(body, proof(body, path), part, start=start, chunked=chunked)
        assert exchange(web, [head + wire + LAST]) == [202, 404]
        assert exchange(web, [head, wire, LAST]) == [202, 404]


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
@pytest.mark.parametrize("method", [b"POST", b"GET", b"PUT", b"OPTIONS", b"DELETE", b"PATCH"])
@pytest.mark.parametrize("path", [b"/healthz", b"/nowhere", WEBHOOK.encode(), b"/files/predictions/a/b"])
def test_a_body_is_never_taken_for_a_request(
    web: Web, witness: HTTPConnection, path: bytes, method: bytes, version: bytes
) -> None:
    start = b"%b %b %b" % (method, path, version)
    plain = exchange(web, [b"".join(request(SMUGGLED, start=start)) + LAST])
    assert len(plain) == (2 if version == b"HTTP/1.1" and plain[-1] == 404 else 1)
    for lines in UPGRADES:
        for chunked in (False, True) if version == b"HTTP/1.1" else (False,):
            head, body = request(SMUGGLED, lines, start=start, chunked=chunked)
            assert exchange(web, [head + body + LAST]) == plain
            pieces = exchange(web, [head, body, LAST], witness)
            # Where it answers before the body and closes, the reset may overtake the answer.
            assert pieces == plain or (pieces == [] and len(plain) == 1)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("lines", UPGRADES[:3])
def test_it_does_not_matter_where_segments_end(
    web: Web, witness: HTTPConnection, lines: bytes, *, chunked: bool
) -> None:
    whole = b"".join(request(SMUGGLED, lines, chunked=chunked)) + LAST
    for cut in range(len(whole)):
        assert exchange(web, [whole[:cut], whole[cut:]], witness) == [404, 404], whole[:cut]
    assert exchange(web, [whole[n : n + 1] for n in range(len(whole))], witness) == [404, 404]


def test_many_requests_that_ask_for_an_upgrade_are_answered_in_their_order(web: Web) -> None:
    body = prediction("ordered")
    many = b""
    for lines in UPGRADES:
        many += b"".join(
            request(body, proof(body, WEBHOOK), lines, start=b"POST " + WEBHOOK.encode() + b" HTTP/1.1")
        )
        many += b"".join(request(SMUGGLED, lines, chunked=True))
    assert exchange(web, [many + LAST]) == [202, 404] * len(UPGRADES) + [404]


def test_an_upgrade_in_trailers_is_none(web: Web) -> None:
    start = b"POST /nowhere HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    trailers = b"2\r\n{}\r\n0\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"
    plain = b"POST /nowhere HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\n{}"
    assert exchange(web, [start + trailers + plain + start + trailers + LAST]) == [404, 404, 404, 404]


@pytest.mark.parametrize(
    "head",
    [
        b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % len(SMUGGLED),
        b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: x\r\n",
        b"CONNECT x:80 HTTP/1.0\r\nconnection: keep-alive\r\n",
        b"CONNECT 127.0.0.1:8000 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n",
    ],
)
def test_no_tunnel_is_opened(web: Web, witness: HTTPConnection, head: bytes) -> None:
    assert exchange(web, [head + b"\r\n" + SMUGGLED]) == [400]
    assert exchange(web, [head + b"\r\n", SMUGGLED], witness) == [400]


def chunks(value: bytes, *more: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    lines = b"".join(b"transfer-encoding:%b\r\n" % one for one in (value, *more))
    return b"POST /nowhere %b\r\nhost: x\r\n%b\r\n2\r\n{}\r\n0\r\n\r\n" % (version, lines)


def length(*lines: bytes) -> bytes:
    return b"POST /nowhere HTTP/1.1\r\nhost: x\r\n%b\r\n{}" % b"".join(line + b"\r\n" for line in lines)


def chunk(wire: bytes) -> bytes:
    return b"POST /nowhere HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + wire


REFUSED = {
    # codings
    "not chunked": chunks(b" xchunked"),
    "chunkedx": chunks(b" chunkedx"),
    "compressed, then chunked": chunks(b" gzip, chunked"),
    "compressed, then chunked, in two": chunks(b" gzip", b" chunked"),
    "chunked, then compressed": chunks(b" chunked, gzip"),
    "identity, then chunked": chunks(b" identity, chunked"),
    "chunked, then identity": chunks(b" chunked, identity"),
    "chunked twice": chunks(b" chunked, chunked"),
    "chunked in two": chunks(b" chunked", b" chunked"),
    "an empty entry": chunks(b" , chunked"),
    "an empty entry behind": chunks(b" chunked,"),
    "a tab behind": chunks(b" chunked\t"),
    "vertical tab": chunks(b" \x0bchunked"),
    "NUL": chunks(b" chunked\x00"),
    "quoted": chunks(b' "chunked"'),
    "with a parameter": chunks(b" chunked;a=b"),
    "empty coding": chunks(b""),
    "identity": chunks(b" identity"),
    "folded coding": chunks(b"\r\n chunked"),
    "chunked in HTTP/1.0": chunks(b" chunked", version=b"HTTP/1.0"),
    "blank before the colon of a coding": length(b"transfer-encoding : chunked"),
    # lengths
    "length and coding": length(b"content-length: 2", b"transfer-encoding: chunked"),
    "coding and length": length(b"transfer-encoding: chunked", b"content-length: 2"),
    "coding that is none, and length": length(b"transfer-encoding: identity", b"content-length: 2"),
    "two lengths": length(b"content-length: 2", b"content-length: 3"),
    "one length twice": length(b"content-length: 2", b"content-length: 2"),
    "a list of lengths": length(b"content-length: 2, 2"),
    "plus": length(b"content-length: +2"),
    "minus": length(b"content-length: -2"),
    "hexadecimal": length(b"content-length: 0x2"),
    "underscore": length(b"content-length: 1_0"),
    "decimal point": length(b"content-length: 2.0"),
    "blank within": length(b"content-length: 2 2"),
    "empty length": length(b"content-length:"),
    "blank before the colon": length(b"content-length : 2"),
    "tab before the colon": length(b"content-length\t: 2"),
    "folded length": length(b"content-length:\r\n 2"),
    "other digits": length("content-length: \uff12".encode()),
    # chunks
    "chunk of negative size": chunk(b"-2\r\n{}\r\n0\r\n\r\n"),
    "chunk with plus": chunk(b"+2\r\n{}\r\n0\r\n\r\n"),
    "chunk with 0x": chunk(b"0x2\r\n{}\r\n0\r\n\r\n"),
    "chunk with underscore": chunk(b"0_2\r\n{}\r\n0\r\n\r\n"),
    "chunk without size": chunk(b"\r\n{}\r\n0\r\n\r\n"),
    "chunk larger than 64 bits": chunk(b"10000000000000002\r\n{}\r\n0\r\n\r\n"),
    "blank behind the size": chunk(b"2 \r\n{}\r\n0\r\n\r\n"),
    "blank before the size": chunk(b" 2\r\n{}\r\n0\r\n\r\n"),
    "bare LF behind the size": chunk(b"2\n{}\r\n0\r\n\r\n"),
    "bare CR behind the size": chunk(b"2\r{}\r\n0\r\n\r\n"),
    "bare LF behind the data": chunk(b"2\r\n{}\n0\r\n\r\n"),
    "nothing behind the data": chunk(b"2\r\n{}0\r\n\r\n"),
    "two bytes behind the data": chunk(b"2\r\n{}xx0\r\n\r\n"),
    "bare LF in an extension": chunk(b"2;a=\nx\r\n{}\r\n0\r\n\r\n"),
    "bare CR in an extension": chunk(b"2;a=\rx\r\n{}\r\n0\r\n\r\n"),
    "line end in a quoted extension": chunk(b'2;a="\r\n"\r\n{}\r\n0\r\n\r\n'),
    "length in trailers": chunk(b"2\r\n{}\r\n0\r\ncontent-length: 9\r\n\r\n"),
    "coding in trailers": chunk(b"2\r\n{}\r\n0\r\ntransfer-encoding: chunked\r\n\r\n"),
    "bare LF at the end": chunk(b"2\r\n{}\r\n0\n\n"),
    # lines
    "bare LF everywhere": b"GET /healthz HTTP/1.1\nhost: x\n\n",
    "bare LF between headers": b"GET /healthz HTTP/1.1\r\na: b\nhost: x\r\n\r\n",
    "bare LF at the end of the head": b"GET /healthz HTTP/1.1\r\nhost: x\r\n\n",
    "bare CR in a value": b"GET /healthz HTTP/1.1\r\na: b\rcontent-length: 9\r\n\r\n",
    "bare CR behind the version": b"GET /healthz HTTP/1.1\rhost: x\r\n\r\n",
    "NUL in a value": b"GET /healthz HTTP/1.1\r\na: \x00\r\n\r\n",
    "NUL in a name": b"GET /healthz HTTP/1.1\r\na\x00: b\r\n\r\n",
    "folded value": b"GET /healthz HTTP/1.1\r\na: b\r\n c\r\n\r\n",
    "folded with a tab": b"GET /healthz HTTP/1.1\r\na: b\r\n\tc\r\n\r\n",
    "blank before the first header": b"GET /healthz HTTP/1.1\r\n a: b\r\n\r\n",
    "header without a name": b"GET /healthz HTTP/1.1\r\n: b\r\n\r\n",
    "header without a colon": b"GET /healthz HTTP/1.1\r\na\r\n\r\n",
    # versions
    "HTTP/0.9": b"GET /healthz HTTP/0.9\r\nhost: x\r\n\r\n",
    "no version": b"GET /healthz\r\n\r\n",
    "HTTP/2.0": b"GET /healthz HTTP/2.0\r\nhost: x\r\n\r\n",
    "HTTP/1.2": b"GET /healthz HTTP/1.2\r\nhost: x\r\n\r\n",
    "HTTP/3.0": b"GET /healthz HTTP/3.0\r\nhost: x\r\n\r\n",
    "blank behind the version": b"GET /healthz HTTP/1.1 \r\nhost: x\r\n\r\n",
    "small letters": b"GET /healthz http/1.1\r\nhost: x\r\n\r\n",
    "tabs": b"GET\t/healthz\tHTTP/1.1\r\nhost: x\r\n\r\n",
    "a fragment": b"GET /healthz#x HTTP/1.1\r\nhost: x\r\n\r\n",
    "a fragment behind a query": b"GET /healthz?a#x HTTP/1.1\r\nhost: x\r\n\r\n",
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
def test_what_a_proxy_may_read_otherwise_is_refused_and_nothing_more_is_read(
    web: Web, witness: HTTPConnection, raw: bytes
) -> None:
    assert exchange(web, [raw + SMUGGLED]) == [400]
    # With its head alone it may have been answered already, and is then closed without a word.
    assert exchange(web, [raw, SMUGGLED], witness) in ([400], [404])
    assert exchange(web, [raw[:-3], raw[-3:] + SMUGGLED], witness) in ([400], [404])
    upgraded = raw.replace(b"\r\nhost: x\r\n", b"\r\nhost: x\r\n" + UPGRADES[0], 1)
    assert exchange(web, [upgraded + SMUGGLED]) == [400]


@pytest.mark.parametrize(
    "raw",
    [
        chunks(b" chunked"),
        chunks(b"\tCHUNKED "),
        chunk(b'2;a=b;c="d"\r\n{}\r\n0\r\n\r\n'),
        chunk(b"002\r\n{}\r\n000\r\nx: y\r\n\r\n"),
        length(b"content-length: 2"),
        length(b"content-length:\t002 "),
        length(b"content-length: 2", b"te: trailers, gzip"),
        length(b"content-length: 2", b"content_length: 9", b"x-transfer-encoding: gzip"),
        b"POST http://x/nowhere HTTP/1.1\r\ncontent-length: 0\r\nhost: x\r\n\r\n",
        b"\r\n\r\nGET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
def test_what_is_clear_is_taken_and_the_next_request_too(web: Web, raw: bytes) -> None:
    assert exchange(web, [raw + LAST]) == [404, 404]


@pytest.mark.parametrize("more", [SMUGGLED, b"\r\n" + SMUGGLED, b"garbage", b"\x00" * 9])
def test_nothing_is_read_behind_the_last_request_of_a_connection(web: Web, more: bytes) -> None:
    for last in (
        LAST,
        b"GET /last HTTP/1.0\r\n\r\n",
        b"GET /last HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
    ):
        assert exchange(web, [last + more]) == [404]


def test_a_client_of_http_1_0_gets_one_answer(web: Web) -> None:
    body = prediction("expects")
    head, _ = request(
        body,
        proof(body, WEBHOOK),
        b"expect: 100-continue\r\n",
        start=b"POST " + WEBHOOK.encode() + b" HTTP/1.0",
    )
    assert exchange(web, [head + body]) == [202]


@pytest.mark.parametrize(
    "path",
    [
        "/webhooks%2freplicate",
        "/webhooks%2Freplicate",
        "/webhooks/replic%61te",
        "/%77ebhooks/replicate",
        "/webhooks/replicate%2ftrainings",
        "/webhooks/x/%2e%2e/replicate",
        "/healthz%2f..%2freadyz",
        "/%6detrics",
        "/healthz%00",
    ],
)
def test_paths_are_matched_as_they_are_sent(web: Web, path: str) -> None:
    assert web.deliver(prediction(), path).status == 404
    assert web.ask("GET", path).status == 404


def in_pieces(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])


@pytest.mark.parametrize(
    ("length", "size", "status"),
    [
        (3000, 1, 202),
        (4000, 1, 202),
        (5000, 1, 400),
        (100_000, 16, 400),
        (100_000, 32, 202),
        (900_000, 256, 202),
    ],
)
def test_a_body_may_not_come_in_crumbs(web: Web, redis: Redis, length: int, size: int, status: int) -> None:
    body = prediction("crumbs", logs="x" * (length - len(prediction("crumbs", logs=""))))
    start = f"POST {WEBHOOK} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n".encode()
    wire = start + proof(body, WEBHOOK) + b"\r\n" + in_pieces(body, size) + LAST
    answers = exchange(web, [wire])
    assert answers == ([202, 404] if status == 202 else [400]) or (status == 400 and not answers)


CHUNKED = b"POST /webhooks/replicate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
DENSE = {
    "tiny chunks": (CHUNKED, b"1\r\na\r\n"),
    "requests": (b"", b"GET /nowhere HTTP/1.1\r\n\r\n"),
    "headers": (b"GET / HTTP/1.1\r\n", b"a:\r\n"),
    "trailers": (CHUNKED + b"0\r\n", b"a:\r\n"),
    "requests that ask for an upgrade": (b"", b"GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"),
}


@pytest.mark.parametrize("shape", DENSE)
def test_no_bytes_of_a_stranger_take_much_more_work_than_others(
    valkey_url: str, redis: Redis, tmp_path: Path, shape: str
) -> None:
    """Two megabytes on each of forty connections."""
    head, dense = DENSE[shape]
    wire = head + dense * ((2 << 20) // len(dense))
    with in_process(valkey_url, tmp_path, OUTKEEP_DISK_FLOOR="0") as (web, process):
        receiver = psutil.Process(process.pid)
        before = sum(receiver.cpu_times()[:2])
        for _ in range(40):
            exchange(web, [wire])
        assert web.outcome(prediction("after")) == "accepted"
        assert sum(receiver.cpu_times()[:2]) - before < 3
