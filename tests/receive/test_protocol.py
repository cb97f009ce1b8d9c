"""Senders that are slow, silent, many, huge or malformed, against the receiver's own server."""

import json
import logging
import select
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from redis import Redis

from app.main import LIMITS
from app.receive.limits import RESERVED_FILES, Limits
from app.receive.listening import free_port
from app.receive.rate_limit import LIMIT
from app.telemetry.resources import open_more_files
from tests.receive.web import (
    BOUND,
    WEBHOOK,
    Web,
    in_process,
    in_thread,
    prediction,
    signed,
    wait_until,
    whole_answer,
)

QUICK = Limits(
    head_seconds=1.5,
    body_seconds=3,
    stall_seconds=1.5,
    keep_alive_seconds=1,
    unread_seconds=0.6,
    linger_seconds=0.6,
    grace_seconds=2,
)
MANY = 500


@pytest.fixture(autouse=True)
def _no_traceback(redis: Redis, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Every test begins on an empty database, and nothing is logged as an error or with a traceback."""
    yield
    said = caplog.get_records("call")
    assert [one for one in said if one.levelno >= logging.ERROR or one.exc_info] == []


@pytest.fixture(scope="module")
def quick(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with in_thread(valkey_url, tmp_path_factory.mktemp("quick"), QUICK) as web:
        yield web


@pytest.fixture(scope="module")
def patient(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with in_thread(valkey_url, tmp_path_factory.mktemp("patient")) as web:
        yield web


def connect(web: Web, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", web.port), timeout=20, source_address=(address, 0))


def head(body: bytes, **more: str) -> bytes:
    """The head of a genuine delivery of `body`."""
    headers = {**signed(body), "content-length": str(len(body)), "host": "x", **more}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {WEBHOOK} HTTP/1.1\r\n{lines}\r\n".encode()


def rest(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    received = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error(answer: bytes) -> str:
    top, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in top
    assert b"x-content-type-options: nosniff" in top.lower()
    return str(json.loads(body)["error"])


def drip(connection: socket.socket, piece: bytes, *, pause: float = 0.1) -> None:
    """Send `piece` again and again until the other side has closed."""
    connection.settimeout(pause)
    for _ in range(200):
        with suppress(TimeoutError):
            if not connection.recv(1, socket.MSG_PEEK):
                return
            # There is an answer: what follows it is the end.
            connection.settimeout(20)
            return
        try:
            connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            return
    raise AssertionError("the other side goes on listening")


def test_a_silent_connection_is_closed_without_a_word(quick: Web) -> None:
    with connect(quick) as connection:
        assert rest(connection) == b""


def test_dripped_headers_end_with_408_and_hold_nobody_up(quick: Web) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(10) as pool:
        connections = [stack.enter_context(connect(quick)) for _ in range(10)]
        for connection in connections:
            connection.sendall(f"POST {WEBHOOK} HTTP/1.1\r\n".encode())
        dripping = [pool.submit(drip, connection, b"x-more: y\r\n") for connection in connections]
        assert quick.outcome(prediction("meanwhile")) == "accepted"
        for one in dripping:
            one.result()
        answers = [rest(connection) for connection in connections]

    assert {(status(answer), error(answer)) for answer in answers} == {(408, "too_slow")}


@pytest.mark.parametrize("sent", [b"", b'{"id": "'])
def test_a_stalled_body_ends_with_408(quick: Web, redis: Redis, sent: bytes) -> None:
    with connect(quick) as connection:
        connection.sendall(head(prediction()) + sent)
        answer = rest(connection)

    assert (status(answer), error(answer)) == (408, "too_slow")
    assert redis.keys("outkeep:record:*") == []


def test_a_dripped_body_ends_with_408_although_it_makes_progress(quick: Web) -> None:
    with connect(quick) as connection:
        connection.sendall(head(b" " * 1000))
        drip(connection, b" ")
        answer = rest(connection)

    assert (status(answer), error(answer)) == (408, "too_slow")


def test_a_body_that_pauses_briefly_is_accepted(patient: Web) -> None:
    body = prediction("pauses")
    with connect(patient) as connection:
        connection.sendall(head(body, connection="close"))
        for piece in (body[:5], body[5:20], body[20:]):
            threading.Event().wait(0.2)
            connection.sendall(piece)
        assert b'{"outcome":"accepted"}' in rest(connection)


def test_a_body_that_drips_on_after_its_answer_is_cut_off_without_a_second_one(quick: Web) -> None:
    with connect(quick) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        drip_until = threading.Event()
        answer = connection.recv(65536)
        with suppress(OSError):
            while not drip_until.wait(0.1):
                connection.sendall(b" ")
                connection.settimeout(0.01)
                with suppress(TimeoutError):
                    piece = connection.recv(65536)
                    answer += piece
                    if not piece:
                        break
    assert status(answer) == 404
    assert answer.count(b"HTTP/1.1 ") == 1


def test_an_idle_connection_is_closed_after_its_answer(quick: Web) -> None:
    with connect(quick) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = rest(connection)

    assert status(answer) == 200
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_byte_does_not_keep_an_idle_connection(quick: Web) -> None:
    with connect(quick) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        connection.recv(65536)
        connection.sendall(b"\r\n")
        assert b"HTTP/1.1 2" not in rest(connection)


def test_a_client_that_does_not_read_is_cut_off(valkey_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "predictions" / "abc"
    folder.mkdir(parents=True)
    (folder / "output-0.bin").write_bytes(b"x" * (64 << 20))
    ask = b"GET /files/predictions/abc/output-0.bin HTTP/1.1\r\nhost: x\r\nauthorization: Bearer t\r\n\r\n"
    with in_thread(valkey_url, tmp_path, QUICK, OUTKEEP_ADMIN_TOKEN="t") as web, connect(web) as connection:
        connection.sendall(ask)
        assert connection.recv(1, socket.MSG_PEEK)
        wait_until(lambda: not established(web.port, connection))
        received = rest(connection)

    assert status(received) == 200
    assert len(received) < 64 << 20


def established(port: int, connection: socket.socket) -> bool:
    """Whether the server still holds its end of a connection."""
    own = connection.getsockname()[1]
    return any(
        one.status == psutil.CONN_ESTABLISHED and (one.laddr.port, one.raddr.port) == (port, own)
        for one in psutil.Process().net_connections(kind="tcp")
    )


@pytest.mark.parametrize(
    "lines",
    [
        b"x: " + b"y" * (64 << 10) + b"\r\n",
        b"x: y\r\n" * 5000,
        b"x: y\r\n" * 129,
        b"".join(b"x-%d: y\r\n" % n for n in range(200)),
    ],
)
def test_too_large_a_head_is_refused(patient: Web, lines: bytes) -> None:
    with connect(patient) as connection:
        connection.sendall(f"POST {WEBHOOK} HTTP/1.1\r\nhost: x\r\n".encode() + lines + b"\r\n")
        answer = rest(connection)

    assert (status(answer), error(answer)) == (431, "headers_too_large")


def test_a_head_without_end_is_refused(patient: Web) -> None:
    with connect(patient) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(b"GET /" + b"a" * (256 << 10))
        answer = rest(connection)

    assert status(answer) in {400, 431}


CHUNKED = f"POST {WEBHOOK} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"


def test_headers_of_a_head_without_end_take_no_memory(valkey_url: str, tmp_path: Path) -> None:
    many = b"GET / HTTP/1.1\r\n" + b"x:y\r\n" * 13_000  # just below the limit of a head
    with in_process(valkey_url, tmp_path) as (web, process), ExitStack() as stack:
        before = psutil.Process(process.pid).memory_info().rss
        for _ in range(100):
            stack.enter_context(connect(web)).sendall(many)
        assert answers(web)  # so what was sent before that is read
        assert psutil.Process(process.pid).memory_info().rss - before < 40 << 20


@pytest.mark.parametrize("piece", [b"x-more: y\r\n", b"y"])
def test_trailers_without_end_are_refused(patient: Web, piece: bytes) -> None:
    with connect(patient) as connection:
        connection.sendall(f"{CHUNKED}\r\n2\r\n{{}}\r\n0\r\nx-more: ".encode())
        # Far more than all buffers together: sending must fail, since nobody reads it.
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(piece * ((32 << 20) // len(piece)))


def test_trailers_are_no_headers(patient: Web) -> None:
    body = prediction()
    lines = "".join(f"{name}: {value}\r\n" for name, value in signed(body).items())
    chunks = f"{len(body):x}\r\n{body.decode()}\r\n0\r\n"
    with connect(patient) as connection:
        connection.sendall(f"{CHUNKED}{lines}\r\n{chunks}{lines}\r\n".encode())
        assert status(whole_answer(connection)) == 202
        connection.sendall(f"{CHUNKED}Connection: close\r\n\r\n{chunks}{lines}\r\n".encode())
        assert error(rest(connection)) == "header_missing"


def test_a_head_that_comes_in_pieces_behind_a_large_body_is_taken(patient: Web) -> None:
    with connect(patient) as connection:
        for number, size in enumerate((200_000, 10)):
            body = prediction(f"piecemeal{number}", logs="x" * size)
            first, _, second = head(body).partition(b"host")
            connection.sendall(first)
            assert answers(patient)  # so what was sent before that is read
            connection.sendall(b"host" + second + body)
            assert status(whole_answer(connection)) == 202


FEW = replace(LIMITS, connections=20)
BEGUN = f"POST {WEBHOOK} HTTP/1.1\r\ncontent-length: 9\r\n".encode()


@pytest.mark.parametrize(
    "sent",
    [b"", b"P", BEGUN, BEGUN + b"\r\n{", CHUNKED.encode() + b"\r\n9\r\n{", b"GET /healthz HTTP/1.1\r\n\r\n"],
    ids=["nothing", "a byte", "half a head", "half a body", "half a chunk", "a request before"],
)
def test_at_the_cap_the_connection_that_waits_for_longest_goes(
    valkey_url: str, tmp_path: Path, sent: bytes
) -> None:
    with in_thread(valkey_url, tmp_path, FEW) as web, ExitStack() as stack:
        held = []
        for _ in range(FEW.connections):
            held.append(stack.enter_context(connect(web)))
            held[-1].sendall(sent)
            if sent.startswith(b"GET"):
                assert b"200 OK" in whole_answer(held[-1])
        wait_until(lambda: len(server_ends(web.port)) == FEW.connections)
        wait_until(lambda: web.ask("GET", "/healthz").status == 200)
        assert web.outcome(prediction("between")) == "accepted"

        gone = [connection for connection in held if connection not in still_open(held)]
        assert gone == held[: len(gone)]
        assert len(gone) in {1, 2}
        if b"\r\n\r\n" in sent and sent.startswith(b"POST"):
            answer = rest(held[0])
            assert (status(answer), error(answer)) == (503, "too_many_connections")
            assert b"\r\nretry-after: 2\r\n" in answer


def still_open(connections: list[socket.socket]) -> list[socket.socket]:
    """Those on which nothing and no end has come."""
    looking = select.poll()
    for one in connections:
        looking.register(one, select.POLLIN)
    ended = {number for number, _ in looking.poll(0)}
    return [one for one in connections if one.fileno() not in ended]


def server_ends(port: int) -> list[int]:
    """The other ports of connections that the server holds."""
    connections = psutil.Process().net_connections(kind="tcp")
    return [
        one.raddr.port
        for one in connections
        if one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port
    ]


def test_who_asks_goes_after_who_is_idle(valkey_url: str, tmp_path: Path) -> None:
    body = prediction("uploads")
    with in_thread(valkey_url, tmp_path, FEW) as web, ExitStack() as stack, connect(web) as upload:
        upload.sendall(head(body, expect="100-continue"))
        assert status(upload.recv(4096)) == 100
        for _ in range(2 * FEW.connections):
            stack.enter_context(connect(web))
        assert web.outcome(prediction("between")) == "accepted"
        upload.sendall(body)
        assert b'{"outcome":"accepted"}' in whole_answer(upload)


def test_where_all_wait_for_us_one_more_connection_is_told_503(valkey_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "predictions" / "abc"
    folder.mkdir(parents=True)
    (folder / "output-0.bin").write_bytes(b"x" * (16 << 20))
    ask = b"GET /files/predictions/abc/output-0.bin HTTP/1.1\r\nhost: x\r\nauthorization: Bearer t\r\n\r\n"
    with in_thread(valkey_url, tmp_path, FEW, OUTKEEP_ADMIN_TOKEN="t") as web, ExitStack() as stack:
        for _ in range(FEW.connections):
            stack.enter_context(connect(web)).sendall(ask)
        wait_until(lambda: len(server_ends(web.port)) == FEW.connections)
        with connect(web) as one_more:
            answer = rest(one_more)
        assert (status(answer), error(answer)) == (503, "too_many_connections")
        assert b"\r\nretry-after: 2\r\n" in answer

        stack.close()
        wait_until(lambda: answers(web))


@pytest.mark.parametrize(
    ("address", "kept"), [("127.0.0.2", 5), ("127.9.9.9", 5), ("127.0.0.1", 20), ("127.0.0.3", 20)]
)
def test_one_address_has_a_quarter_of_the_connections_unless_it_is_a_proxy(
    valkey_url: str, tmp_path: Path, address: str, kept: int
) -> None:
    proxies = "127.0.0.1, 127.0.0.3/32"
    with in_thread(valkey_url, tmp_path, FEW, FORWARDED_ALLOW_IPS=proxies) as web, ExitStack() as stack:
        other = stack.enter_context(connect(web, "127.0.0.4"))
        held = [stack.enter_context(connect(web, address)) for _ in range(30)]
        wait_until(lambda: len(still_open(held)) <= kept)
        assert still_open(held) == held[-kept:]
        assert still_open([other]) == ([other] if kept == 5 else [])


def test_two_thousand_idle_connections_keep_nobody_out(valkey_url: str, tmp_path: Path) -> None:
    assert open_more_files() > 4500
    with in_process(valkey_url, tmp_path) as (web, _), ExitStack() as stack:
        for number in range(LIMITS.connections + 200):
            stack.enter_context(connect(web, f"127.0.1.{number // 400 + 1}"))
        for number in range(20):
            assert web.outcome(prediction(f"among{number}")) == "accepted"


@pytest.mark.parametrize(
    ("limit", "idle"), [("-Sn 1024", 1500), ("-n 1024", 1500), ("-n 512", 1500), ("-n 4096", 2200)]
)
def test_the_files_that_may_be_open_suffice(valkey_url: str, tmp_path: Path, limit: str, idle: int) -> None:
    assert open_more_files() > 4500
    # Without Redis each delivery needs files for the spool, too.
    nowhere = f"redis://127.0.0.1:{free_port()}"
    with in_process(nowhere, tmp_path, limit) as (web, _), ExitStack() as stack:
        held = []
        for number in range(idle):
            held.append(stack.enter_context(connect(web)))
            if number % 100 == 0:
                assert web.outcome(prediction(f"among{number}")) == "spooled"
        assert web.outcome(prediction("afterwards")) == "spooled"
        assert (len(still_open(held)) == idle) == (limit == "-Sn 1024")
    log = (tmp_path / "serve.log").read_bytes()
    assert b"Traceback" not in log
    assert b"system resource" not in log
    assert (b"raise the hard limit" in log) == (limit != "-Sn 1024")


@pytest.mark.parametrize(
    ("files", "connections"), [(1 << 20, 2000), (20_000, 2000), (4096, 1216), (1024, 256), (512, 96), (64, 8)]
)
def test_the_cap_of_connections_follows_from_the_open_files(files: int, connections: int) -> None:
    limits = LIMITS.within(files)
    assert limits.connections == connections
    assert files < 512 or 2 * limits.connections + 3 * limits.backlog + RESERVED_FILES <= files


@pytest.mark.parametrize(
    ("connections", "seconds"),
    [(1, 75), (1000, 75), (1500, 37.5), (1800, 15), (1990, 1.5), (2000, 1.5), (3000, 1.5)],
)
def test_the_fuller_it_is_the_shorter_connections_may_be_idle(connections: int, seconds: float) -> None:
    assert LIMITS.keep_alive(connections) == pytest.approx(seconds)


def answers(web: Web) -> bool:
    with suppress(OSError):
        return web.deliver(prediction()).status == 202
    return False


def test_idle_connections_do_not_hold_up_a_delivery(patient: Web) -> None:
    with ExitStack() as stack:
        for _ in range(MANY):
            stack.enter_context(connect(patient))
        assert patient.deliver(prediction("between"), timeout=BOUND).status == 202


@pytest.mark.parametrize(
    ("sent", "lines"),
    [
        (b"", "content-length: 33554432\r\n"),
        (b"{", "content-length: 33554432\r\n"),
        (b"{", "content-length: 33554432\r\nexpect: 100-continue\r\n"),
        (b"2000000\r\n{", "transfer-encoding: chunked\r\n"),
        (b"x" * 60_000, "content-length: 33554432\r\n"),
        (b"x" * 100_000, "content-length: 33554432\r\n"),
    ],
)
def test_what_is_only_promised_takes_nothing_from_the_budget(
    valkey_url: str, tmp_path: Path, sent: bytes, lines: str
) -> None:
    limits = replace(Limits(), bodies=64 << 20)
    with in_thread(valkey_url, tmp_path, limits) as web, ExitStack() as stack:
        for _ in range(50):
            connection = stack.enter_context(connect(web))
            connection.sendall(f"POST {WEBHOOK} HTTP/1.1\r\n{lines}\r\n".encode() + sent)
        for number in range(5):
            assert web.outcome(prediction(f"large{number}", logs="x" * (2 << 20))) == "accepted"


def deliver_at_last(web: Web, body: bytes, **headers: str) -> None:
    """Deliver while another body stands still, which in its first moments may have been the faster one."""
    wait_until(lambda: web.deliver(body, headers=headers).status == 202)


def test_large_bodies_share_a_budget_and_the_slowest_goes(valkey_url: str, tmp_path: Path) -> None:
    limits = replace(Limits(), bodies=3 << 20, stall_seconds=60)
    large = prediction("large", logs="x" * (2 << 20))
    with in_thread(valkey_url, tmp_path, limits) as web, connect(web) as slow:
        slow.sendall(head(large) + large[:-1])
        for number in range(3):
            deliver_at_last(web, prediction(f"fast{number}", logs="x" * (2 << 20)))
        assert web.outcome(prediction("small")) == "accepted"
        answer = rest(slow)
        assert (status(answer), error(answer)) == (503, "busy")
        assert b"\r\nretry-after: 5\r\n" in answer
        assert web.outcome(large) == "accepted"
        assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("first", "second", "is_one"),
    [
        ("203.0.113.7", "203.0.113.7", True),
        ("2001:db8:1:2::a", "2001:db8:1:2:ffff::b", True),
        ("::ffff:203.0.113.7", "203.0.113.7", True),
        ("203.0.113.7", "203.0.113.8", False),
        ("2001:db8:1:2::a", "2001:db8:1:3::a", False),
        ("127.0.0.1", "127.0.0.1", False),
        ("10.1.2.3", "10.3.2.1", False),
        ("10.1.2.3", "10.1.2.3", False),
    ],
)
def test_one_sender_has_a_quarter_of_the_budget_unless_it_is_a_proxy(
    valkey_url: str, tmp_path: Path, first: str, second: str, *, is_one: bool
) -> None:
    limits = replace(Limits(), bodies=8 << 20, stall_seconds=60)
    body = prediction("first", logs="x" * (1500 << 10))
    settings = {"OUTKEEP_MAX_BODY": "2MiB", "FORWARDED_ALLOW_IPS": "127.0.0.1,10.0.0.0/8"}
    with in_thread(valkey_url, tmp_path, limits, **settings) as web, connect(web) as slow:
        slow.sendall(head(body, **{"x-forwarded-for": first}) + body[:-1])
        for number in range(3):
            other = prediction(f"other{number}", logs="x" * (1500 << 10))
            deliver_at_last(web, other, **{"x-forwarded-for": second})
        if not is_one:
            slow.sendall(body[-1:])
            assert b'{"outcome":"accepted"}' in whole_answer(slow)
        else:
            answer = rest(slow)
            assert (status(answer), error(answer)) == (503, "busy")


@contextmanager
def promised(web: Web, body: bytes) -> Iterator[socket.socket]:
    """A delivery whose body the receiver has agreed to take."""
    with connect(web) as connection:
        connection.sendall(head(body, expect="100-continue"))
        assert status(connection.recv(4096)) == 100
        yield connection


def test_a_chunked_body_is_counted_as_it_comes(valkey_url: str, tmp_path: Path) -> None:
    limits = replace(Limits(), bodies=1 << 20)
    large = prediction(logs="x" * (2 << 20))
    with in_thread(valkey_url, tmp_path, limits) as web, connect(web) as connection:
        lines = "".join(f"{name}: {value}\r\n" for name, value in signed(large).items())
        connection.sendall(f"POST {WEBHOOK} HTTP/1.1\r\n{lines}transfer-encoding: chunked\r\n\r\n".encode())
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(b"%x\r\n" % len(large) + large + b"\r\n0\r\n\r\n")
        answer = rest(connection)

    assert (status(answer), error(answer)) == (503, "busy")


def test_a_large_body_needs_a_place_for_its_temporary_file(valkey_url: str, tmp_path: Path) -> None:
    (tmp_path / "tmp").write_text("a file in its place")
    with in_thread(valkey_url, tmp_path) as web:
        answer = web.deliver(prediction(logs="x" * (2 << 20)))
        assert (answer.status, answer.json()["error"]) == (503, "no_room")
        assert web.outcome(prediction("small")) == "accepted"


def test_five_hundred_large_bodies_leave_memory_flat_and_let_good_ones_pass(
    valkey_url: str, tmp_path: Path
) -> None:
    size = 32 << 20
    with in_process(valkey_url, tmp_path) as (web, process), ExitStack() as stack:
        assert web.outcome(prediction("before", logs="x" * (4 << 20))) == "accepted"
        before = psutil.Process(process.pid).memory_info().rss
        for number in range(MANY):
            connection = stack.enter_context(connect(web))
            connection.sendall(head(b"", **{"content-length": str(size), "expect": "100-continue"}))
            assert status(connection.recv(4096)) == 100
            if number < LIMITS.bodies // size + 4:
                with suppress(BrokenPipeError, ConnectionResetError):  # it may be the slowest
                    connection.sendall(b"x" * (size - 1))
        assert web.outcome(prediction("large", logs="x" * (4 << 20))) == "accepted"
        assert web.deliver(prediction("good"), timeout=BOUND).status == 202
        grown = psutil.Process(process.pid).memory_info().rss - before
        stack.close()
        process.terminate()
        assert process.wait(60) == 0
    assert grown < 64 << 20
    assert b"Traceback" not in (tmp_path / "serve.log").read_bytes()


def test_many_bodies_that_are_no_large_ones_leave_memory_flat(valkey_url: str, tmp_path: Path) -> None:
    size = (1 << 20) - 1
    with in_process(valkey_url, tmp_path) as (web, process), ExitStack() as stack:
        assert web.outcome(prediction("before", logs="x" * (4 << 20))) == "accepted"
        before = psutil.Process(process.pid).memory_info().rss
        for _ in range(220):
            connection = stack.enter_context(connect(web))
            connection.sendall(head(b"", **{"content-length": str(size + 1)}) + b"x" * size)
        assert web.outcome(prediction("large", logs="x" * (4 << 20))) == "accepted"
        assert psutil.Process(process.pid).memory_info().rss - before < 96 << 20


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: a\x00b\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"CONNECT x HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(patient: Web, garbage: bytes) -> None:
    with connect(patient) as connection:
        connection.sendall(garbage)
        answer = rest(connection)

    assert (status(answer), error(answer)) == (400, "bad_request")


def test_a_broken_chunk_ends_a_delivery(patient: Web, redis: Redis) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in signed(prediction()).items())
    with connect(patient) as connection:
        connection.sendall(f"POST {WEBHOOK} HTTP/1.1\r\n{lines}transfer-encoding: chunked\r\n\r\n".encode())
        connection.sendall(b'5\r\n{"id"\r\nzz\r\n')
        answer = rest(connection)

    assert (status(answer), error(answer)) == (400, "bad_request")
    assert redis.keys("outkeep:record:*") == []


def test_an_upgrade_is_not_made(patient: Web, caplog: pytest.LogCaptureFixture) -> None:
    with connect(patient) as connection:
        connection.sendall(
            b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\r\n"
        )
        assert status(rest(connection)) == 200
    assert caplog.text == ""


def test_requests_sent_together_are_answered_in_their_order(patient: Web) -> None:
    with connect(patient) as connection:
        connection.sendall(
            b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n"
            + head(prediction("third"), connection="close")
            + prediction("third")
        )
        answer = rest(connection)
    assert [status(b"HTTP/1.1 " + one) for one in answer.split(b"HTTP/1.1 ")[1:]] == [200, 404, 202]


def test_more_requests_at_once_than_the_limit_are_left_unanswered(patient: Web) -> None:
    with connect(patient) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 2000)
        answer = rest(connection)

    assert answer.count(b"HTTP/1.1 200 OK") == answer.count(b"HTTP/1.1 ") == 1 + LIMITS.pipelined


def test_who_leaves_before_all_answers_leaves_no_trace(patient: Web) -> None:
    for _ in range(20):
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", patient.port))
            connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * LIMITS.pipelined)
            assert connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: answers(patient))


def test_garbage_behind_a_delivery_does_not_touch_its_answer(patient: Web) -> None:
    with connect(patient) as connection:
        connection.sendall(head(prediction("first")) + prediction("first") + b"\x00 garbage \r\n\r\n")
        answer = rest(connection)

    assert status(answer) == 202
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("encodings", "refused"),
    [
        (["gzip"], True),
        (["GZIP "], True),
        (["x-gzip"], True),
        (["br"], True),
        (["deflate"], True),
        (["zstd"], True),
        (["aws-chunked, gzip"], True),
        (["identity", "gzip"], True),
        (["gzip", "identity"], True),
        (["aws-chunked,identity"], False),
        (["aws-chunked"], False),
        (["UTF-8"], False),
        (["utf8", "binary"], False),
        (["none"], False),
        (["identity"], False),
        ([""], False),
        ([" , ,"], False),
        (["application/json"], False),
        (["8bit"], False),
        (["null"], False),
    ],
)
def test_only_a_content_encoding_that_is_a_compression_is_refused(
    patient: Web, encodings: list[str], *, refused: bool
) -> None:
    body = prediction()
    lines = "".join(f"content-encoding: {encoding}\r\n" for encoding in encodings)
    with connect(patient) as connection:
        connection.sendall(head(body, connection="close")[:-2] + f"{lines}\r\n".encode() + body)
        answer = rest(connection)
    if refused:
        assert (status(answer), error(answer)) == (415, "content_encoding")
    else:
        assert status(answer) == 202


def test_a_stalled_upload_does_not_hold_up_the_end(valkey_url: str, tmp_path: Path) -> None:
    """The block ends only when the server has."""
    limits = replace(Limits(), grace_seconds=1)
    with ExitStack() as stack:
        with in_thread(valkey_url, tmp_path, limits) as web:
            stalled = stack.enter_context(promised(web, prediction()))
        answer = rest(stalled)

    assert (status(answer), error(answer)) == (408, "too_slow")


def test_a_flood_of_bad_signatures_is_told_429_and_good_ones_pass(patient: Web) -> None:
    bad, malformed = {"webhook-signature": f"v1,{'A' * 43}="}, {"webhook-signature": "v1,A"}
    with closing(connect(patient)) as connection:
        statuses = []
        for number in range(LIMIT + 2):
            top = head(
                prediction(), **(malformed if number % 2 else bad), **{"x-forwarded-for": "203.0.113.7"}
            )
            connection.sendall(top + prediction())
            statuses.append(status(whole_answer(connection)))
    assert statuses == [401, 400] * (LIMIT // 2) + [429] * 2

    def ask(address: str, headers: dict[str, str]) -> int:
        return patient.deliver(prediction(), headers={**headers, "x-forwarded-for": address}).status

    assert ask("203.0.113.7", bad) == 429
    assert ask("203.0.113.7", {}) == 202
    assert ask("203.0.113.8", bad) == 401
