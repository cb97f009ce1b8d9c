"""Deliveries while Redis is well, away, stopped, full, read-only or killed."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from redis import Redis

from app.accept.inbox import MAX_BATCH, MAX_BATCH_BYTES, Inbox
from app.accept.records import LARGE, Accepted, Arrival, Records
from app.core.errors import Transient
from app.core.manifest import Receipt
from app.core.names import Kind, persist_job_id
from app.core.prediction import parse
from app.receive.listening import free_port
from app.valkey.client import connect
from tests.own_valkey import OwnValkey, own_valkey
from tests.receive import web as webs
from tests.receive.web import BOUND, WEBHOOK, Answer, Web, prediction, signed, wait_until

# Without a spool, so that what Redis did not confirm is seen; with one, see test_spool.py.
in_thread = partial(webs.in_thread, OUTKEEP_SPOOL="off")
in_process = partial(webs.in_process, OUTKEEP_SPOOL="off")


@pytest.fixture
def valkey() -> Iterator[OwnValkey]:
    with own_valkey() as server:
        yield server


def refused(web: Web) -> Answer:
    """A delivery that must be refused within the bound; the socket's time-out is the judge."""
    answer = web.deliver(prediction("refused"), timeout=BOUND)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"] == "redis_unavailable"
    assert answer.json()["message"]
    return answer


def recovers(web: Web, identity: str = "afterwards") -> None:
    """Without a restart, deliveries are accepted again."""
    wait_until(lambda: web.deliver(prediction(identity)).status == 202)


def calls(redis: Redis, command: str) -> int:
    """How often the server has run a command."""
    statistics = cast(dict[str, dict[str, int]], redis.info("commandstats"))
    return statistics.get(f"cmdstat_{command}", {"calls": 0})["calls"]


def test_deliveries_that_arrive_together_go_to_redis_together(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    with in_thread(valkey.url, tmp_path) as web:
        # What arrives while the first batch waits for its answer gathers behind it.
        valkey.redis.client_pause(500, all=False)
        with ThreadPoolExecutor(40) as pool:
            outcomes = list(pool.map(lambda n: web.outcome(prediction(f"p{n}")), range(40)))

    assert outcomes == ["accepted"] * 40
    # The receiver itself says a few times what it is.
    assert 40 <= calls(valkey.redis, "evalsha") <= 46
    # The script is loaded once in each batch.
    assert calls(valkey.redis, "script|load") <= 20


def test_a_delivery_alone_takes_one_round_trip(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    with in_thread(valkey.url, tmp_path) as web:
        for number in range(30):
            web.outcome(prediction(f"p{number}"))

    assert 30 <= calls(valkey.redis, "evalsha") <= 36
    assert calls(valkey.redis, "script|exists") == 0


def test_a_script_that_redis_has_forgotten_is_loaded_again(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    with in_thread(valkey.url, tmp_path) as web:
        for number in range(3):
            assert web.outcome(prediction(f"p{number}")) == "accepted"
            valkey.redis.script_flush()
        assert web.outcome(prediction("p2")) == "duplicate"


def test_without_redis_deliveries_are_refused_and_later_accepted(valkey: OwnValkey, tmp_path: Path) -> None:
    with in_thread(valkey.url, tmp_path) as web:
        assert web.ask("GET", "/healthz").status == 200
        for _ in range(3):
            refused(web)

        valkey.start()
        recovers(web)


def test_a_refused_tcp_port_is_answered_within_the_bound(tmp_path: Path) -> None:
    with in_thread(f"redis://127.0.0.1:{free_port()}", tmp_path) as web:
        refused(web)


def test_a_redis_that_never_speaks_is_answered_within_the_bound(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with in_thread(f"redis://127.0.0.1:{port}", tmp_path) as web:
            refused(web)
            refused(web)


def test_a_redis_that_drips_its_answers_is_answered_within_the_bound(tmp_path: Path) -> None:
    with dripping() as port, in_thread(f"redis://127.0.0.1:{port}", tmp_path) as web:
        refused(web)
        refused(web)


@contextmanager
def with_hanging_storage(url: str, folder: Path, **more: str) -> Iterator[tuple[Web, list[socket.socket]]]:
    """A receiver whose storage takes connections and never answers, and these connections."""
    with silent() as (port, asked):
        storage = {"AWS_ENDPOINT": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "x"}
        keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "OUTKEEP_ADMIN_TOKEN": "token"}
        with in_process(url, folder, OUTKEEP_STORAGE="s3://bucket", **storage, **keys, **more) as (web, _):
            yield web, asked


def send(stack: ExitStack, web: Web, head: str, body: bytes = b"") -> None:
    """Ask something, and do not wait for the answer."""
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", web.port)))
    connection.sendall(f"{head} HTTP/1.1\r\nHost: x\r\n".encode() + body)


def test_files_in_a_storage_that_hangs_hold_up_no_delivery(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    with ExitStack() as stack, with_hanging_storage(valkey.url, tmp_path) as (web, asked):
        for _ in range(40):
            head = "GET /files/predictions/abc/output-0.png"
            send(stack, web, head, b"Authorization: Bearer token\r\n\r\n")
        wait_until(lambda: len(asked) >= 8)  # more than the threads that all parts of a small machine share

        assert web.deliver(prediction(), timeout=BOUND).status == 202
        ready = web.ask("GET", "/readyz")
        assert (ready.status, b"ok redis" in ready.body) == (200, True)


def test_a_quarantine_that_hangs_holds_up_no_large_delivery(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    spool = {"OUTKEEP_SPOOL": "on", "OUTKEEP_DISK_FLOOR": "0"}
    with ExitStack() as stack, with_hanging_storage(valkey.url, tmp_path, **spool) as (web, asked):
        for number in range(40):
            body = b"[%d]" % number
            headers = {**signed(body), "Content-Length": str(len(body))}
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            send(stack, web, f"POST {WEBHOOK}", lines.encode() + b"\r\n" + body)
        wait_until(lambda: len(asked) >= 4)

        # It belongs into the storage as well, and waits in the spool until that takes it.
        assert web.outcome(prediction(logs="x" * (2 << 20))) == "spooled"


@contextmanager
def silent() -> Iterator[tuple[int, list[socket.socket]]]:
    """The port of a server that takes connections and never answers, and what it has taken."""
    taken: list[socket.socket] = []

    def take() -> None:
        with suppress(OSError):
            while True:
                taken.append(server.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield server.getsockname()[1], taken
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for one in taken:
                one.close()


@contextmanager
def dripping() -> Iterator[int]:
    """A server that answers anything with an endless line, one byte before each time-out of the client."""
    ending = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"+")
            while not ending.wait(0.3):
                connection.sendall(b"x")

    def take(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threads.append(threading.Thread(target=answer, args=(server.accept()[0],)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threads = [threading.Thread(target=take, args=(server,))]
        threads[0].start()
        try:
            yield server.getsockname()[1]
        finally:
            ending.set()
            server.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def test_a_stopped_redis_refuses_within_the_bound_and_recovers(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    with in_thread(valkey.url, tmp_path) as web:
        web.outcome(prediction("before"))
        valkey.signal(signal.SIGSTOP)
        with ThreadPoolExecutor(30) as pool:
            # The first ones hang with their batch; those behind it must not wait a second time-out.
            list(pool.map(lambda _: refused(web), range(30)))
        refused(web)
        valkey.signal(signal.SIGCONT)
        recovers(web)
        assert web.outcome(prediction("refused")) in {"accepted", "duplicate"}
        assert is_whole(valkey.redis, "refused")


def parts(redis: Redis, identity: str) -> tuple[bool, bool, int]:
    """Of one prediction: whether there is a record, whether there is a job, how often it is queued."""
    record = Records(redis, ttl=60).get(Kind.PREDICTION, identity)
    job = persist_job_id(Kind.PREDICTION, identity)
    queued = cast(list[bytes], redis.lrange("rq:queue:persist", 0, -1))
    return record is not None, bool(redis.exists(f"rq:job:{job}")), queued.count(job.encode())


def is_whole(redis: Redis, identity: str) -> bool:
    return parts(redis, identity) == (True, True, 1)


def is_absent(redis: Redis, identity: str) -> bool:
    return parts(redis, identity) == (False, False, 0)


def test_a_full_redis_refuses_and_writes_nothing_by_half(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    with in_thread(valkey.url, tmp_path) as web:
        web.outcome(prediction("before"))
        valkey.redis.config_set("maxmemory", "1mb")
        refused(web)
        assert is_absent(valkey.redis, "refused")

        valkey.redis.config_set("maxmemory", "0")
        recovers(web)
        assert web.outcome(prediction("refused")) == "accepted"


def test_a_read_only_replica_refuses_until_it_is_promoted(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    with in_thread(valkey.url, tmp_path) as web:
        valkey.redis.replicaof("127.0.0.1", "1")
        refused(web)
        assert [*valkey.redis.scan_iter("outkeep:record*"), *valkey.redis.scan_iter("rq:*")] == []

        valkey.redis.replicaof("NO", "ONE")
        recovers(web)


def test_a_wrong_password_refuses_and_is_told_nowhere(
    valkey: OwnValkey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    valkey.start("--requirepass", "right")
    url = valkey.url.replace("unix://", "unix://:wr0ng@")
    with in_thread(url, tmp_path) as web:
        answer = refused(web)
        ready = web.ask("GET", "/readyz")

    assert ready.status == 503
    assert b"wr0ng" not in answer.body + ready.body
    assert "wr0ng" not in caplog.text


def test_a_redis_killed_under_traffic_keeps_all_that_was_acknowledged(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    valkey.start()
    with in_thread(valkey.url, tmp_path) as web:
        acknowledged = kill_in_the_middle(web, valkey.kill)
        valkey.start()

        for identity in (f"p{number}" for number in range(400)):
            whole = is_whole(valkey.redis, identity)
            assert whole or (identity not in acknowledged and is_absent(valkey.redis, identity))
        recovers(web)


def kill_in_the_middle(web: Web, kill: Callable[[], None], *, count: int = 400) -> set[str]:
    """Send `count` deliveries from 16 threads, `kill` after 50 acknowledgements; the acknowledged ids."""
    acknowledged: set[str] = set()
    enough = threading.Event()

    def send(number: int) -> None:
        try:
            status = web.deliver(prediction(f"p{number}")).status
        except OSError:
            return  # the receiver is gone: nothing was acknowledged
        assert status in {202, 503}
        if status == 202:
            acknowledged.add(f"p{number}")
            if len(acknowledged) >= 50:
                enough.set()

    with ThreadPoolExecutor(16) as pool:
        sent = [pool.submit(send, number) for number in range(count)]
        assert enough.wait(60)
        kill()
        for one in sent:
            one.result()
    return acknowledged


def test_a_receiver_stopped_under_traffic_ends_with_0_and_has_lost_nothing(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    valkey.start()
    with in_process(valkey.url, tmp_path) as (web, process):
        acknowledged = kill_in_the_middle(web, lambda: process.send_signal(signal.SIGTERM))

        assert process.wait(timeout=60) == 0
        assert all(is_whole(valkey.redis, identity) for identity in acknowledged)
        assert b"Traceback" not in (tmp_path / "serve.log").read_bytes()


def test_deliveries_in_flight_at_sigterm_are_made_durable_and_answered(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    valkey.start()
    bodies = [prediction(f"p{number}") for number in range(100)]
    with in_process(valkey.url, tmp_path) as (web, process), ExitStack() as stack:
        connections = [stack.enter_context(in_flight(web, body)) for body in bodies]
        process.send_signal(signal.SIGTERM)
        for connection, body in zip(connections, bodies, strict=True):
            connection.sendall(body)
        answers = [connection.recv(4096) for connection in connections]

        assert all(answer.startswith(b"HTTP/1.1 202") for answer in answers)
        assert process.wait(timeout=60) == 0
    assert all(is_whole(valkey.redis, f"p{number}") for number in range(100))


@contextmanager
def in_flight(web: Web, body: bytes) -> Iterator[socket.socket]:
    """A delivery whose body the receiver waits for: it has said so by `100 Continue`."""
    headers = {**signed(body), "Content-Length": str(len(body)), "Expect": "100-continue"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", web.port), timeout=60) as connection:
        connection.sendall(f"POST {WEBHOOK} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
        yield connection


def test_after_a_failed_batch_nothing_is_sent_until_redis_answers(valkey: OwnValkey) -> None:
    batches = 0

    def counting_clock() -> datetime:
        nonlocal batches
        batches += 1
        return datetime.now(UTC)

    async def outcome(inbox: Inbox) -> object:
        [answer] = await asyncio.gather(inbox.accept(one_arrival()), return_exceptions=True)
        return answer

    async def until_accepted(inbox: Inbox) -> None:
        while isinstance(await outcome(inbox), Transient):  # noqa: ASYNC110 - the breaker tells nobody
            await asyncio.sleep(0.02)

    async def scenario() -> None:
        redis = connect(valkey.url)
        inbox = Inbox(redis, Records(redis, ttl=60), counting_clock)
        outcomes = [await outcome(inbox) for _ in range(20)]
        assert all(isinstance(one, Transient) for one in outcomes)
        assert batches == 1

        valkey.start()
        await asyncio.wait_for(until_accepted(inbox), 30)
        assert batches == 2
        await inbox.close()
        redis.close()

    asyncio.run(scenario())


def one_arrival() -> Arrival:
    parsed = parse(prediction(status="processing"), Kind.PREDICTION)
    return Arrival(parsed, prediction(), Receipt(datetime.now(UTC), "msg_1"), None)


def test_a_batch_is_no_larger_than_redis_takes_in_time(redis: Redis) -> None:
    batches = 0

    def counting_clock() -> datetime:
        nonlocal batches
        batches += 1
        return datetime.now(UTC)

    async def accept_large_ones() -> None:
        inbox = Inbox(redis, Records(redis, ttl=60), counting_clock)
        large = replace(one_arrival(), body=bytes(LARGE))
        await asyncio.gather(*(inbox.accept(large) for _ in range(2 * MAX_BATCH_BYTES // LARGE)))
        await inbox.close()

    asyncio.run(accept_large_ones())

    assert batches == 2


def test_a_sender_that_hung_up_spoils_no_batch(redis: Redis) -> None:
    async def accept_two() -> list[object]:
        is_on_its_way = asyncio.Event()

        def clock() -> datetime:
            is_on_its_way.set()
            return datetime.now(UTC)

        inbox = Inbox(redis, Records(redis, ttl=60), clock)
        redis.client_pause(300, all=False)  # its answer comes after one has hung up
        gone, there = (asyncio.create_task(inbox.accept(one_arrival())) for _ in range(2))
        await is_on_its_way.wait()
        gone.cancel()
        outcomes = await asyncio.gather(gone, there, return_exceptions=True)
        await inbox.close()
        return list(outcomes)

    gone, there = asyncio.run(accept_two())

    assert isinstance(gone, asyncio.CancelledError)
    assert there is Accepted.DUPLICATE


def test_a_fault_of_our_own_lets_nobody_wait_for_ever(redis: Redis) -> None:
    def broken_clock() -> datetime:
        raise ArithmeticError("no time")

    async def accept_many() -> list[object]:
        inbox = Inbox(redis, Records(redis, ttl=60), broken_clock)
        arrival = one_arrival()
        waiting = [inbox.accept(arrival) for _ in range(MAX_BATCH + 1)]
        outcomes: list[object] = list(
            await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
        )
        # The next one is tried again: nothing says that Redis is away.
        outcomes += await asyncio.gather(inbox.accept(arrival), return_exceptions=True)
        await inbox.close()
        return outcomes

    outcomes = asyncio.run(accept_many())

    assert len(outcomes) == MAX_BATCH + 2
    assert all(isinstance(outcome, Transient) for outcome in outcomes)
