"""What `/healthz` and `/readyz` say of a real Redis in every condition."""

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Worker
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer

from app.accept import queues
from app.core.fleet import Process
from app.core.links import fingerprint
from app.core.names import (
    EPOCH,
    HANDLE_QUEUE,
    IDENTITY_NAME,
    KEY_FINGERPRINT,
    NOTIFY_QUEUE,
    PERSIST_QUEUE,
    RECONCILED,
    STORAGE_ID,
)
from app.health.checks import registered
from app.health.presence import Presence
from app.maintain.handler_states import HandlerStates
from app.receive.listening import free_port
from app.storage.store import Storage
from app.valkey.client import TIMEOUT, connect
from tests.own_valkey import WEAK, OwnValkey, own_valkey
from tests.receive.web import (
    BOUND,
    SECRET_KEY,
    WEBHOOK,
    Answer,
    Web,
    in_thread,
    prediction,
    signed,
    wait_until,
)

TOKEN = "a-token-of-the-admin"
OTHER_KEY = "another key of thirty-two bytes!".replace(" ", "-")


@pytest.fixture
def valkey() -> Iterator[OwnValkey]:
    with own_valkey() as server:
        yield server


def ready(web: Web, **headers: str) -> Answer:
    return web.ask("GET", "/readyz", headers=headers, timeout=2 * BOUND)


def lines(answer: Answer) -> list[str]:
    assert answer.headers["content-type"].startswith("text/plain")
    return answer.body.decode().splitlines()


def line(answer: Answer, check: str) -> str:
    (found,) = [one for one in lines(answer) if one.partition(" ")[2].startswith(check)]
    return found


def register(redis: Redis, *queues: str) -> None:
    """What a worker does when it starts."""
    for name in queues:
        Worker([name], connection=redis, name=f"worker-of-{name}", serializer=JSONSerializer).register_birth()  # type: ignore[no-untyped-call]


def test_all_is_well_with_a_durable_redis_and_workers(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    register(valkey.redis, PERSIST_QUEUE, NOTIFY_QUEUE)
    for name in (PERSIST_QUEUE, NOTIFY_QUEUE, HANDLE_QUEUE):
        valkey.redis.set(RQScheduler.get_locking_key(name), "a scheduler")
    valkey.redis.set(RECONCILED, time.time())
    with in_thread(valkey.url, tmp_path, REPLICATE_API_TOKEN="r8_x", OUTKEEP_DISK_FLOOR="0") as web:
        answer = ready(web)

    assert answer.status == 200
    assert [one.partition(":")[0] for one in lines(answer)] == [
        "ok redis",
        "ok secret key",
        "ok workers of persist",
        "ok workers of notify",
        "ok scheduler",
        "ok queue persist",
        "ok queue notify",
        "ok queue handle",
        "ok reconcile",
        "ok spool",
        "ok disk",
        "ok token",
        "ok storage",
    ]


def test_what_hides_trouble_is_warned_of_while_deliveries_are_acknowledged(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    """Old work, no scheduler, a full disk and no token."""
    valkey.start()
    queue = queues.queue(PERSIST_QUEUE, valkey.redis)
    job = queue.enqueue("workers.jobs.persist", "prediction", "abc")
    valkey.redis.hset(job.key, "enqueued_at", "2020-01-01T00:00:00.000000Z")
    with in_thread(valkey.url, tmp_path, OUTKEEP_DISK_FLOOR="1024TiB") as web:
        answer = ready(web)

    assert answer.status == 200
    for said in ("warn queue persist: 1 waiting", "warn scheduler: none for", "warn disk: ", "warn token: "):
        assert said in answer.body.decode()


def test_a_handler_that_is_switched_off_is_warned_of_without_its_name_for_strangers(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    valkey.start()
    HandlerStates(valkey.redis).switch_off("gallery", datetime(2026, 3, 16, tzinfo=UTC))
    with in_thread(valkey.url, tmp_path) as web:
        answer = ready(web)
    with in_thread(valkey.url, tmp_path, FORWARDED_ALLOW_IPS="*") as web:
        stranger = ready(web, **{"x-forwarded-for": "203.0.113.9"})

    assert answer.status == 200
    assert line(answer, "handler gallery") == (
        "warn handler gallery: it answered 410 at 2026-03-16T00:00:00.000Z and is told nothing;"
        " `outkeep handlers enable gallery` ends that"
    )
    assert line(stranger, "handlers") == "warn handlers"


@pytest.mark.parametrize(("option", "value", "said"), WEAK)
def test_a_redis_that_may_lose_is_warned_of(
    valkey: OwnValkey, tmp_path: Path, option: str, value: str, said: str
) -> None:
    valkey.start(f"--{option}", value)
    with in_thread(valkey.url, tmp_path) as web:
        answer = ready(web)

    assert answer.status == 200
    assert line(answer, "redis").startswith(f"warn redis: {said}")


def test_a_redis_that_hides_its_configuration_is_warned_of(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    with in_thread(valkey.narrow("config"), tmp_path) as web:
        answer = ready(web)

    assert answer.status == 200
    assert line(answer, "redis") == "warn redis: CONFIG GET is not allowed, so durability is unknown"


def test_a_redis_that_has_lost_data_is_warned_of_until_it_is_rebuilt(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    """By what the storage says, and by what this process has seen itself; workers rebuild, and none runs."""
    valkey.start()
    Storage((tmp_path / "outputs").as_uri()).put_bytes(IDENTITY_NAME, b'{"id": "a", "epoch": 12}')
    with in_thread(valkey.url, tmp_path) as web:
        for epoch in (13, 20):  # emptied before it began, and while it runs
            wait_until(lambda: "warn redis data: it has come back without" in ready(web).body.decode())
            assert "`outkeep rebuild`" in line(ready(web), "redis data")
            assert ready(web).status == 200
            valkey.redis.set(EPOCH, epoch)
            wait_until(lambda: "redis data" not in ready(web).body.decode())
            valkey.redis.flushall()
        wait_until(lambda: "warn redis data" in ready(web).body.decode())
        valkey.redis.set(EPOCH, 19)  # an older copy of its data
        wait_until(lambda: valkey.redis.get(KEY_FINGERPRINT) is not None)
        assert "warn redis data" in ready(web).body.decode()


def test_missing_workers_are_warned_of(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    register(valkey.redis, NOTIFY_QUEUE)
    handlers = tmp_path / "handlers.toml"
    handlers.write_text('[[handler]]\nname = "thumbnail"\njob = "tasks.keep"\nqueue = "thumbs"\n')
    with in_thread(valkey.url, tmp_path, OUTKEEP_HANDLERS=str(handlers)) as web:
        answer = ready(web)
        metrics = web.ask("GET", "/metrics").body.decode()

    assert answer.status == 200
    assert line(answer, "workers of persist") == (
        "warn workers of persist: none runs; start `outkeep work persist`"
    )
    assert line(answer, "workers of notify") == "ok workers of notify: 1 running"
    assert line(answer, "workers of thumbs") == (
        "warn workers of thumbs: none runs; start `rq worker -S json thumbs`"
    )
    assert 'outkeep_queue_jobs{queue="thumbs",state="waiting"} 0.0' in metrics


def test_a_key_of_another_deployment_is_a_warning_and_names_who_has_it(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    valkey.start()
    storage = (tmp_path / "outputs").as_uri()
    with (
        in_thread(valkey.url, tmp_path / "a", OUTKEEP_STORAGE=storage) as first,
        in_thread(
            valkey.url, tmp_path / "b", OUTKEEP_STORAGE=storage, OUTKEEP_SECRET_KEY=OTHER_KEY
        ) as second,
    ):
        other = Presence(valkey.redis, process(OTHER_KEY, pid=1))
        other.say()
        wait_until(lambda: line(ready(first), "secret key").startswith("warn"))
        for web in (first, second):
            answer = ready(web)
            assert answer.status == 200
        assert "has none of the keys of receiver:elsewhere:1" in line(ready(first), "secret key")
    assert SECRET_KEY.encode() not in (valkey.redis.get(KEY_FINGERPRINT) or b"")


def process(*keys: str, pid: int, **more: Any) -> Process:
    """A receiver on another host."""
    marks = tuple(fingerprint(key.encode()) for key in keys)
    facts = {"version": metadata.version("outkeep"), "handlers": {}, "storage": None, **more}
    return Process("receiver", "elsewhere", pid, keys=marks, **facts)


@pytest.mark.parametrize("document", [None, "{}", '{"id": "another"}', '{"epoch": 7}', '{"id": 7}'])
def test_a_receiver_that_learns_later_of_another_storage_is_not_ready(
    valkey: OwnValkey, tmp_path: Path, document: str | None
) -> None:
    """As when the storage did not answer at its start. What it takes would be kept where nobody looks."""
    valkey.start()
    valkey.redis.set(STORAGE_ID, "that of Redis")
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    (outputs / "prediction.txt").touch()
    if document is not None:
        (outputs / "outkeep.json").write_text(document)
    torn = document == "{}"  # by a power cut: it may be the right one
    with in_thread(valkey.url, tmp_path) as web:
        wait_until(lambda: torn or ready(web).status == 503)
        answer = ready(web)
    found = [one for one in lines(answer) if "storage id" in one]
    if torn:
        assert (answer.status, found) == (200, [])
    else:
        assert answer.status == 503
        assert found[0].startswith("fail storage id: OUTKEEP_STORAGE: ")
        assert "outkeep storage adopt" in found[0]


def test_a_rotated_key_is_the_same_deployment(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    both, new = f"{OTHER_KEY} {SECRET_KEY}", OTHER_KEY
    for keys, level in ((SECRET_KEY, "ok"), (both, "ok"), (new, "ok"), (both, "ok"), (SECRET_KEY, "warn")):
        with in_thread(valkey.url, tmp_path, OUTKEEP_SECRET_KEY=keys) as web:
            answer = ready(web)
            assert answer.status == 200
            assert line(answer, "secret key").startswith(level)


def test_the_key_that_signs_counts_for_all_once_all_know_it(valkey: OwnValkey, tmp_path: Path) -> None:
    """Until then, whoever still signs with the old one starts without a warning."""
    valkey.start()
    old, new = (fingerprint(key.encode()).encode() for key in (SECRET_KEY, OTHER_KEY))
    with in_thread(valkey.url, tmp_path) as web:
        ready(web)
    assert valkey.redis.get(KEY_FINGERPRINT) == old
    behind, level = Presence(valkey.redis, process(SECRET_KEY, pid=1)), process(SECRET_KEY, OTHER_KEY, pid=1)
    for other, signs in ((behind, old), (Presence(valkey.redis, level), new)):
        other.say()
        with in_thread(valkey.url, tmp_path, OUTKEEP_SECRET_KEY=f"{OTHER_KEY} {SECRET_KEY}") as web:
            assert line(ready(web), "secret key").startswith("ok")
        assert valkey.redis.get(KEY_FINGERPRINT) == signs


def test_without_redis_and_spool_we_live_and_are_not_ready(tmp_path: Path) -> None:
    with in_thread(f"redis://127.0.0.1:{free_port()}", tmp_path, OUTKEEP_SPOOL="off") as web:
        live = web.ask("GET", "/healthz")
        answer = ready(web)

    assert (live.status, live.body) == (200, b"ok\n")
    assert answer.status == 503
    assert line(answer, "redis") == (
        "fail redis: no answer (ConnectionError); deliveries are refused until it is well"
    )
    assert line(answer, "storage").startswith("ok storage")


def test_without_redis_we_are_ready_while_the_spool_is_usable(tmp_path: Path) -> None:
    with in_thread(f"redis://127.0.0.1:{free_port()}", tmp_path, OUTKEEP_DISK_FLOOR="0") as web:
        answer = ready(web)
        assert answer.status == 200
        assert line(answer, "redis") == (
            "warn redis: no answer (ConnectionError); deliveries wait in the spool until it is well"
        )
        assert line(answer, "spool") == "ok spool: empty"

        web.outcome(prediction())
        waits = "warn spool: 1 deliveries wait for Redis, or, if large, for the storage; the oldest for "
        wait_until(lambda: line(ready(web), "spool").startswith(waits))


def test_a_look_at_workers_leaves_the_time_out_of_a_client_as_it_is(valkey: OwnValkey) -> None:
    """A worker of RQ's raises it for all connections to come: readiness would wait for minutes."""
    valkey.start()
    register(valkey.redis, "persist")
    with closing(connect(valkey.url)) as redis:
        [found] = registered(redis, "persist", datetime.now(UTC))
        assert (found.host, found.pid) == (socket.gethostname(), os.getpid())
        assert redis.connection_pool.connection_kwargs["socket_timeout"] == TIMEOUT


def test_without_redis_a_full_disk_is_not_ready_and_says_why(tmp_path: Path) -> None:
    with in_thread(f"redis://127.0.0.1:{free_port()}", tmp_path, OUTKEEP_DISK_FLOOR="1000TiB") as web:
        answer = ready(web)

    assert answer.status == 503
    assert line(answer, "redis").startswith("fail redis: no answer")
    assert line(answer, "spool").startswith(f"warn spool: the disk of {tmp_path}/spool is too full: ")


def test_without_redis_a_spool_that_cannot_be_made_is_not_ready_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file in its place")
    with in_thread(f"redis://127.0.0.1:{free_port()}", tmp_path, OUTKEEP_DISK_FLOOR="0") as web:
        answer = ready(web)

    assert answer.status == 503
    assert line(answer, "spool").startswith(f"warn spool: cannot write to {tmp_path}/spool: ")


@pytest.mark.parametrize(("spool", "status", "level"), [("off", 503, "fail"), ("on", 200, "warn")])
def test_a_full_redis_is_said(valkey: OwnValkey, tmp_path: Path, spool: str, status: int, level: str) -> None:
    valkey.start()
    with in_thread(valkey.url, tmp_path, OUTKEEP_SPOOL=spool, OUTKEEP_DISK_FLOOR="0") as web:
        assert ready(web).status == 200
        valkey.redis.config_set("maxmemory", "1mb")
        said = f"{level} redis: takes no writes (OutOfMemoryError)"
        wait_until(lambda: line(ready(web), "redis").startswith(said))
        assert ready(web).status == status


@pytest.mark.parametrize(("spool", "status", "level"), [("off", 503, "fail"), ("on", 200, "warn")])
def test_a_read_only_replica_is_said(
    valkey: OwnValkey, tmp_path: Path, spool: str, status: int, level: str
) -> None:
    valkey.start()
    with in_thread(valkey.url, tmp_path, OUTKEEP_SPOOL=spool, OUTKEEP_DISK_FLOOR="0") as web:
        valkey.redis.replicaof("127.0.0.1", "1")
        answer = ready(web)

    assert answer.status == status
    assert line(answer, "redis").startswith(f"{level} redis: takes no writes (ReadOnlyError)")


def test_storage_that_cannot_be_written_is_warned_of(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    with in_thread(valkey.url, tmp_path) as web:
        shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
        (tmp_path / "outputs").write_text("a file in its place")
        answer = ready(web)

    assert answer.status == 200
    assert line(answer, "storage").startswith("warn storage: cannot write to")


def test_good_signatures_of_another_time_are_a_warning_that_names_clock_skew(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    valkey.start()
    with in_thread(valkey.url, tmp_path) as web:
        assert not [one for one in lines(ready(web)) if "clock" in one]
        old = signed(prediction(), now=time.time() - 400)
        assert web.ask("POST", WEBHOOK, prediction(), old).status == 401
        wait_until(lambda: "warn clock: 1 deliveries" in ready(web).body.decode())
        assert "clock skew" in line(ready(web), "clock")
        assert ready(web).status == 200


def test_details_are_for_loopback_and_the_admin_alone(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    outside = {"x-forwarded-for": "203.0.113.7"}
    with in_thread(valkey.url, tmp_path, OUTKEEP_ADMIN_TOKEN=TOKEN) as web:
        assert line(ready(web), "storage").startswith("ok storage: file://")
        for token in ("", TOKEN[:-1], f"{TOKEN}x"):
            answer = ready(web, **outside, authorization=f"Bearer {token}")
            assert answer.status == 200
            assert all(":" not in one for one in lines(answer))
        assert line(ready(web, **outside, authorization=f"Bearer {TOKEN}"), "storage").startswith(
            "ok storage: file:"
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("forwarded", "for=127.0.0.1"),
        ("via", "1.1 proxy"),
        ("x-real-ip", "127.0.0.1"),
        ("x-forwarded-host", "keep.example.com"),
        ("x-forwarded-server", "proxy"),
    ],
)
def test_who_comes_through_a_proxy_of_this_host_sees_no_details(
    valkey: OwnValkey, tmp_path: Path, name: str, value: str
) -> None:
    valkey.start()
    with in_thread(valkey.url, tmp_path) as web:
        answer = ready(web, **{name: value, "x-forwarded-for": "127.0.0.1"})
        assert all(":" not in one for one in lines(answer))


def test_a_forwarded_address_counts_only_from_a_proxy_we_trust(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    with in_thread(valkey.url, tmp_path, FORWARDED_ALLOW_IPS="192.0.2.1") as web:
        assert ":" in line(ready(web, **{"x-forwarded-for": "203.0.113.7"}), "storage")
