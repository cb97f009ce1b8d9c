"""What is signed and cannot be used: kept whole, in little room, and not without a bound."""

import base64
import gzip
import hashlib
import json
import os
import shutil
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from redis import Redis

from app.accept.quarantine import COUNTED_FOR, INLINE, LIFE, SMALLEST, Aside, Quarantine
from app.accept.spool import MAX_BATCH, MAX_FAILURES
from app.core.errors import Transient, Unusable
from app.core.manifest import Source
from app.core.names import (
    NOTIFY_QUEUE,
    PERSIST_QUEUE,
    Kind,
    quarantine_body_name,
    quarantine_name,
    record_key,
)
from app.deployment import connect, prepare
from app.maintain.removal import Removal
from app.storage.store import Storage
from tests.receive.web import Web, environment, in_thread, prediction, wait_until
from workers.repair.sweep import sweeper_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ID = "ype2b3w02xrme0cqadzrms82nm"
LARGE = 4 << 20
TOKEN = "a-token-of-cog-workers"


@pytest.fixture(scope="module")
def web(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with in_thread(valkey_url, tmp_path_factory.mktemp("quarantine")) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


def quarantine(folder: Path, now: datetime = NOW, **keys: Any) -> Quarantine:
    return Quarantine(Storage(folder.as_uri()), disk_floor=0, clock=lambda: now, **keys)


def aside(body: bytes, at: datetime = NOW, source: Source = "webhook") -> Aside:
    return Aside(Kind.PREDICTION, body, Unusable("not_json", "no"), at, source, {}, {"webhook-id": "m"})


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


BODIES = [
    (b"[]", True, True),
    (b"", True, True),
    ('["größer \N{CAT}"]'.encode(), True, True),
    (b"[" + b" " * (INLINE - 2) + b"]", True, True),
    (b"[" + b" " * (INLINE - 1) + b"]", False, False),
    (b"\xff\xfe{\x00}\x00", False, True),
    (b"\x00\xff", False, True),
    (gzip.compress(b"{}", mtime=0), False, True),
    (b"\xff" * LARGE, False, False),
    (b"x" * LARGE, False, False),
    (b"[" * LARGE, False, False),
    ("ü".encode() * (LARGE // 2), False, False),
]


@pytest.mark.parametrize(("body", "is_text", "is_small"), BODIES)
def test_every_body_is_kept_whole_in_the_document_or_beside_it(
    web: Web, body: bytes, *, is_text: bool, is_small: bool
) -> None:
    shelf = web.folder / "outputs" / "quarantine"
    before = set(shelf.rglob("*"))
    assert web.outcome(body) == "quarantined"

    new = {path for path in set(shelf.rglob("*")) - before if path.is_file()}
    (document,) = [path for path in new if path.suffix == ".json"]
    kept = json.loads(document.read_bytes())
    assert kept["size"] == len(body)
    assert kept["body"] == (body.decode() if is_text else None)
    assert kept["body_base64"] == (base64.b64encode(body).decode() if is_small else None)
    if is_text:
        assert (kept["body_at"], new) == (None, {document})
    else:
        assert (web.folder / "outputs" / kept["body_at"]).read_bytes() == body
        assert kept["body_at"] == str(document.relative_to(web.folder / "outputs")).replace(".json", ".bin")
    assert sum(path.stat().st_size for path in new) < 3 * INLINE + len(body)


def test_a_large_one_takes_no_memory_beside_its_bytes(folder: Path) -> None:
    body = b"\xff" * (31 << 20)
    shelf = quarantine(folder)
    tracemalloc.start()
    try:
        shelf.put(aside(body))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < 2 << 20
    assert sum(sizes(folder).values()) < len(body) + 8192


def test_the_same_one_again_is_kept_once(folder: Path) -> None:
    shelf, body = quarantine(folder, quota=3 * SMALLEST), b"\xff" * INLINE * 2
    for _ in range(10):
        shelf.put(aside(body))

    assert len(sizes(folder)) == 2


@pytest.mark.parametrize("size", [1, INLINE, INLINE + 1, 1 << 20])
def test_beyond_the_quota_nothing_more_is_set_aside_also_by_another_process(folder: Path, size: int) -> None:
    quota = 4 << 20

    def fill() -> None:
        for number in range(1000):
            # As many processes as deliveries: none remembers what the others have brought.
            quarantine(folder, quota=quota).put(aside(b"%04d" % number + b"\xff" * size))

    with pytest.raises(Transient, match="outkeep ls --quarantine") as full:
        fill()

    assert full.value.code == "quarantine_full"
    assert len(sizes(folder)) >= 3
    assert sum(sizes(folder).values()) <= quota
    assert len(sizes(folder)) <= quota // SMALLEST


@pytest.mark.parametrize("size", [1, INLINE, INLINE + 1, 1 << 20])
@pytest.mark.parametrize("remembers", [True, False])
def test_cog_gets_a_quarter_of_the_quota_and_what_is_signed_the_rest(
    folder: Path, size: int, *, remembers: bool
) -> None:
    quota = 16 << 20
    one = quarantine(folder, quota=quota)

    def fill(source: Source) -> None:
        for number in range(1000):
            # Also where as many processes take them, of which none remembers what the others have brought.
            shelf = one if remembers else quarantine(folder, quota=quota)
            shelf.put(aside(source.encode() + b"%04d" % number + b"\xff" * size, source=source))

    def counted() -> int:
        return sum(max(each, SMALLEST) for each in sizes(folder).values())

    with pytest.raises(Transient, match="for Cog a quarter of that"):
        fill("cog")
    assert quota // 8 < counted() <= quota // 4
    with pytest.raises(Transient):
        fill("webhook")
    assert quota * 7 // 8 < counted() <= quota


def test_at_most_a_gibibyte_lies_there_and_what_is_good_is_taken_all_the_same(
    valkey_url: str, tmp_path: Path
) -> None:
    more = {"OUTKEEP_DISK_FLOOR": "0", "OUTKEEP_COG_TOKEN": TOKEN}
    with in_thread(valkey_url, tmp_path, **more) as web:
        assert web.outcome(b"[1]") == "quarantined"
    fill(tmp_path / "outputs", (1 << 30) - SMALLEST)
    with in_thread(valkey_url, tmp_path, **more) as web:
        answer = web.deliver(b"[2]")
        assert (answer.status, answer.json()["error"]) == (503, "quarantine_full")
        assert web.ask("POST", "/webhooks/cog", b"[", {"authorization": f"Bearer {TOKEN}"}).status == 503
        assert web.outcome(prediction()) in {"accepted", "duplicate"}


def test_a_full_quarantine_holds_up_nothing_in_the_spool(
    valkey_url: str, redis: Redis, tmp_path: Path
) -> None:
    """Ends of Cog about predictions of Replicate wait there, more than a batch of them, and a good one."""
    more = {"OUTKEEP_DISK_FLOOR": "0", "OUTKEEP_COG_TOKEN": TOKEN}
    names = [f"theirs{number}" for number in range(MAX_BATCH + MAX_FAILURES)]
    with in_thread(valkey_url, tmp_path, **more) as web:
        for name in names:
            assert web.outcome(prediction(name, status="processing")) == "progress"
    with in_thread(f"unix://{tmp_path}/nobody", tmp_path, **more) as away:
        for name in names:
            headers = {"authorization": f"Bearer {TOKEN}"}
            assert away.ask("POST", "/webhooks/cog", prediction(name), headers).status == 202
        assert away.outcome(prediction()) == "spooled"
    fill(tmp_path / "outputs", 1 << 30)
    with in_thread(valkey_url, tmp_path, **more):
        # Of the others nothing is lost.
        wait_until(lambda: len(list((tmp_path / "spool").glob("*.delivery"))) == len(names))
    assert redis.exists(record_key(Kind.PREDICTION, ID))


def fill(outputs: Path, size: int) -> None:
    """Let a quarantine hold so many bytes more, of which none is on the disk."""
    hole = outputs / quarantine_body_name(quarantine_name(datetime.now(UTC).date().isoformat(), "a" * 64))
    hole.parent.mkdir(parents=True, exist_ok=True)
    with hole.open("wb") as file:
        file.truncate(size)


def test_what_other_processes_bring_is_counted_after_a_minute(folder: Path) -> None:
    times = [NOW]
    shelf = Quarantine(Storage(folder.as_uri()), disk_floor=0, clock=lambda: times[0], quota=3 * SMALLEST)
    shelf.put(aside(b"[]"))
    for number in range(2):
        quarantine(folder).put(aside(b"[%d]" % number))
    times[0] += COUNTED_FOR
    with pytest.raises(Transient, match="outkeep ls --quarantine"):
        shelf.put(aside(b"[3]"))


def test_what_was_set_aside_long_ago_makes_room(folder: Path) -> None:
    quota = 2 * SMALLEST
    quarantine(folder, quota=quota).put(aside(b"[]"))
    quarantine(folder, quota=quota).put(aside(b"[1]"))
    later = NOW + timedelta(days=31)

    quarantine(folder, later - timedelta(days=2)).tidy()
    assert len(sizes(folder)) == 2
    quarantine(folder, later, quota=quota).put(aside(b"[2]", later))

    assert len(sizes(folder)) == 1


def test_what_was_set_aside_long_ago_goes_although_nothing_new_comes(folder: Path) -> None:
    times = [NOW]
    shelf = Quarantine(Storage(folder.as_uri()), disk_floor=0, clock=lambda: times[0])
    shelf.put(aside(b"\xff"))
    shelf.tidy()
    assert len(sizes(folder)) == 2
    times[0] += LIFE + timedelta(days=1)
    shelf.tidy()

    assert sizes(folder) == {}


def test_the_sweep_of_the_worker_that_stores_tidies_it(
    valkey_url: str, redis: Redis, tmp_path: Path, folder: Path
) -> None:
    now = datetime.now(UTC)
    for days in (0, 20, LIFE.days + 2, 400):
        at = now - timedelta(days=days)
        quarantine(folder, at).put(aside(b"\xff%d" % days, at))
    deployment = connect(*prepare(environment(valkey_url, tmp_path), receives=False))
    for queue in (NOTIFY_QUEUE, PERSIST_QUEUE):
        assert len(sizes(folder / "quarantine")) == 2 * 4
        sweeper_of(queue, deployment, ()).tidy()

    left = {path.parent.name for path in (folder / "quarantine").rglob("*.json")}
    assert left == {(now - timedelta(days=ago)).date().isoformat() for ago in (0, 20)}


@pytest.mark.parametrize("off", [-56 * 365.0, -31.0, -1.0, 1.0, 31.0, 365.0])
def test_a_host_whose_clock_was_wrong_changes_nothing_of_how_long_it_is_kept(
    folder: Path, off: float
) -> None:
    """The disk dates a file by the clock of its host; it is `off` by so many days."""
    quarantine(folder).put(aside(b"\xff"))
    dated = max((NOW + timedelta(days=off)).timestamp(), 0)
    for path in folder.rglob("*.*"):
        os.utime(path, (dated, dated))

    quarantine(folder, NOW + LIFE - timedelta(minutes=1)).tidy()
    assert len(sizes(folder)) == 2
    quarantine(folder, NOW + LIFE + timedelta(days=1)).tidy()
    assert sizes(folder) == {}


def test_below_the_disk_floor_it_is_refused_and_leaves_nothing(
    valkey_url: str, redis: Redis, tmp_path: Path
) -> None:
    with in_thread(valkey_url, tmp_path, OUTKEEP_DISK_FLOOR="1000TiB") as web:
        for body in (b"[]", b"\xff" * LARGE, b"[" * LARGE, b"", b"{"):
            answer = web.deliver(body)
            assert (answer.status, answer.json()["error"]) == (503, "storage_full")
            assert int(answer.headers["retry-after"]) > 0
        assert web.outcome(prediction()) == "accepted"
    assert redis.exists("outkeep:record:prediction:ype2b3w02xrme0cqadzrms82nm")

    assert not list((tmp_path / "outputs").rglob("quarantine/**/*"))
    assert not list((tmp_path / "outputs").rglob("*.bin"))


def test_what_would_not_fit_above_the_disk_floor_is_refused_by_its_size(
    valkey_url: str, redis: Redis, tmp_path: Path
) -> None:
    """On a disk of memory, which nobody else fills, of which 16 MiB may be used."""
    with TemporaryDirectory(dir="/dev/shm") as disk:
        floor = str(2 * (shutil.disk_usage(disk).free - (16 << 20)))
        more = {"OUTKEEP_STORAGE": Path(disk).as_uri(), "OUTKEEP_DISK_FLOOR": floor}
        with in_thread(valkey_url, tmp_path, **more) as web:
            assert web.outcome(b"\xff" * (2 << 20)) == "quarantined"
            assert web.deliver(b"\xff" * (31 << 20)).json()["error"] == "storage_full"
            assert web.outcome(prediction("fits", logs="x" * (2 << 20))) == "accepted"
            assert web.outcome(prediction("too-large", logs="x" * (31 << 20))) == "spooled"
        assert sum(sizes(Path(disk)).values()) < 8 << 20
        assert redis.hget(record_key(Kind.PREDICTION, "too-large"), "body_at") is None


def test_a_document_comes_when_its_bytes_are_there(folder: Path) -> None:
    """Whoever is killed between the two leaves no document that promises bytes."""
    body = b"\xff" * LARGE
    name = quarantine_name(NOW.date().isoformat(), hashlib.sha256(body).hexdigest())
    (folder / quarantine_body_name(name)).mkdir(parents=True)  # so that the bytes cannot be written
    (folder / quarantine_body_name(name) / "x").touch()

    with pytest.raises(Transient):
        quarantine(folder).put(aside(body))
    assert not (folder / name).exists()


def test_a_quarantine_that_hangs_holds_up_no_good_delivery(
    valkey_url: str, redis: Redis, tmp_path: Path
) -> None:
    """Named pipes stand where documents do, as on a share that has gone; more than any pool has threads."""
    bodies = [b"[%d]" % number for number in range(40)]
    today = datetime.now(UTC)
    days = [day.date().isoformat() for day in (today, today + timedelta(days=1))]
    pipes = [
        tmp_path / "outputs" / quarantine_name(day, hashlib.sha256(body).hexdigest())
        for day in days
        for body in bodies
    ]
    with in_thread(valkey_url, tmp_path, OUTKEEP_DISK_FLOOR="0") as web, ThreadPoolExecutor(40) as senders:
        for pipe in pipes:
            pipe.parent.mkdir(parents=True, exist_ok=True)
            os.mkfifo(pipe)
        sent = [senders.submit(web.deliver, body) for body in bodies]
        try:
            for number in range(20):
                size = 2 << 20 if number % 2 else 1
                assert web.outcome(prediction(f"good{number}", logs="x" * size)) == "accepted"
            assert not any(one.done() for one in sent)
        finally:
            while not all(one.done() for one in sent):
                for pipe in pipes:
                    with suppress(OSError):  # nobody reads it now
                        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
                time.sleep(0.01)


OURS, OTHER = ID.encode(), b"somebody-else"


@pytest.mark.parametrize(
    ("body", "is_found"),
    [
        (b'{"id": "' + OURS + b'", "status": ""}', True),
        (b'\xff{"id": "' + OURS + b'"}', True),
        (b'{"id" :\n\t"' + OURS + b'", "logs": "' + b"x" * LARGE + b'"', True),
        (b"\xff" * LARGE + b'"id":"' + OURS + b'"', True),
        (b'{"id": "' + OTHER + b'", "logs": "' + OURS + b'", "status": ""}', False),
        (b'\xff{"id": "' + OTHER + b'", "logs": "' + OURS + b'"}', False),
        (b'{"id": "' + OURS + b'-2", "status": ""}', False),
    ],
)
def test_a_removal_finds_what_names_the_prediction_wherever_its_bytes_lie(
    redis: Redis, folder: Path, body: bytes, *, is_found: bool
) -> None:
    quarantine(folder).put(aside(body))
    removal = Removal(redis, Storage(folder.as_uri()), ttl=60, clock=lambda: NOW)

    found = removal.search(Kind.PREDICTION, ID)
    removal.remove(found)

    assert len(found.quarantined) == int(is_found)
    assert bool(sizes(folder / "quarantine")) is not is_found


def test_a_document_of_an_earlier_version_is_found_too(redis: Redis, folder: Path) -> None:
    body = f'{{"id": "{ID}", "status": ""}}'
    old = {"reason": {"code": "bad_status"}, "kind": "prediction", "headers": {}, "body": body}
    storage = Storage(folder.as_uri())
    name = f"quarantine/2026-01-01/{'a' * 64}.json"
    storage.put_bytes(name, json.dumps(old, indent=1).encode())
    removal = Removal(redis, storage, ttl=60, clock=lambda: NOW)

    assert removal.search(Kind.PREDICTION, ID).quarantined == [name]
