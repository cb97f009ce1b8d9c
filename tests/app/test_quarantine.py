"""What is signed and cannot be used: kept whole, in little room, and not without a bound."""

import base64
import gzip
import json
import os
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.core.errors import Transient, Unusable
from app.core.names import Kind
from app.quarantine import INLINE, LIFE, SMALLEST, Aside, Quarantine
from app.removal import Removal
from app.storage import Storage
from tests.app.web import Web, in_thread, prediction

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ID = "ype2b3w02xrme0cqadzrms82nm"
LARGE = 4 << 20


@pytest.fixture(scope="module")
def web(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with in_thread(valkey_url, tmp_path_factory.mktemp("quarantine")) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


def quarantine(folder: Path, now: datetime = NOW, **keys: Any) -> Quarantine:
    return Quarantine(Storage(folder.as_uri()), disk_floor=0, clock=lambda: now, **keys)


def aside(body: bytes, at: datetime = NOW) -> Aside:
    return Aside(Kind.PREDICTION, body, Unusable("not_json", "no"), at, "webhook", {}, {"webhook-id": "m"})


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


def test_what_was_set_aside_long_ago_makes_room(folder: Path) -> None:
    quota = 2 * SMALLEST
    quarantine(folder, quota=quota).put(aside(b"[]"))
    quarantine(folder, quota=quota).put(aside(b"[1]"))
    later = NOW + LIFE + timedelta(days=1)

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
