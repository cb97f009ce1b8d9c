"""What killed processes leave on a disk, and what must stay there."""

import os
import time
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore
from redis import Redis

from app.accept.records import Records
from app.core.lifecycle import HALF_WRITTEN_AFTER, STRAY_AFTER, Repair
from app.core.names import Kind, record_key, removed_key
from tests.keep.test_scratch import holder
from tests.receive.web import wait_until
from workers.repair.files import WALK_EVERY, LocalFiles

WEEK = 7 * 86400.0


class Disk:
    """Two folders, and a clock that stands still until it is told otherwise."""

    def __init__(self, folder: Path, redis: Redis) -> None:
        self.temporary, self.outputs = folder / "tmp", folder / "outputs"
        self.now = time.time()
        self.redis = redis
        self.files = LocalFiles(
            self.temporary, self.outputs, Records(redis, ttl=60), held_for=WEEK, now=lambda: self.now
        )

    def record(self, state: str, **fields: str) -> None:
        """The record of `abc`, to which a parked download belongs."""
        time = "2026-03-01T12:00:00.000Z"
        known = {
            "status": "succeeded",
            "updated_at": time,
            "received_at": time,
            "source": "webhook",
            "query": "{}",
        }
        items = [part for pair in (known | fields | {"state": state}).items() for part in pair]
        self.redis.hset(record_key(Kind.PREDICTION, "abc"), items=items)

    def put(self, path: Path, *, age: float) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        os.utime(path, (self.now - age, self.now - age))
        return path

    def removed(self) -> int:
        return self.files.run()[Repair.FILE_REMOVED]


@pytest.fixture
def disk(tmp_path: Path, redis: Redis) -> Disk:
    return Disk(tmp_path, redis)


def test_folders_that_do_not_exist_yet_hold_nothing(disk: Disk) -> None:
    assert disk.removed() == 0
    assert not disk.temporary.exists()
    assert not disk.outputs.exists()


def test_a_remote_store_has_no_folder_to_walk(disk: Disk, redis: Redis) -> None:
    half = disk.put(disk.outputs / "predictions/abc/output-0.png#1", age=WEEK)
    remote = LocalFiles(disk.temporary, None, Records(redis, ttl=60), held_for=WEEK)
    assert remote.run()[Repair.FILE_REMOVED] == 0
    assert half.exists()


def test_the_folder_of_a_killed_process_goes_while_others_run(disk: Disk) -> None:
    with holder(disk.temporary) as (dead, left), holder(disk.temporary) as (_, other):
        dead.kill()
        dead.wait()
        assert disk.removed() == 1
        assert not left.exists()
        assert (other / "fetch-1.part").exists()
        assert disk.removed() == 0


def test_old_downloads_go_and_young_ones_stay(disk: Disk) -> None:
    held = "held.prediction.abc.0.d1e2"
    young = [
        disk.put(disk.temporary / "fetch-1.part", age=STRAY_AFTER - 1),
        disk.put(disk.temporary / held, age=WEEK - 1),
        disk.put(disk.temporary / "mine.txt", age=10 * WEEK),
    ]
    old = [
        disk.put(disk.temporary / "fetch-2.part", age=STRAY_AFTER + 1),
        disk.put(disk.temporary / f"{held}0", age=WEEK + 1),
    ]
    assert disk.removed() == len(old)
    assert sorted(disk.temporary.iterdir()) == sorted(young)


@pytest.mark.parametrize(
    ("record", "age", "goes"),
    [
        ({"state": "received"}, 10 * WEEK, False),
        (None, 10 * WEEK, True),
        (None, 1, False),
        ({"state": "dispatched", "files": "1", "lost": "0"}, 1, True),
        ({"state": "dispatched", "files": "0", "lost": "1"}, 1, False),
        ("removed", 1, True),
    ],
    ids=["it waits for the storage", "nobody knows it", "it may come", "another host has kept it",
         "another host has lost something", "it was removed"],
)  # fmt: skip
def test_a_parked_download_stays_while_it_may_be_needed(
    disk: Disk, record: "dict[str, str] | str | None", age: float, *, goes: bool
) -> None:
    disk.put(disk.temporary / "held.prediction.abc.0.d1e2", age=age)
    if isinstance(record, dict):
        disk.record(**record)
    elif record:
        disk.redis.set(removed_key(Kind.PREDICTION, "abc"), 1)
    assert disk.removed() == goes


def test_an_old_download_of_a_living_process_goes(disk: Disk) -> None:
    with holder(disk.temporary) as (_, folder):
        disk.put(folder / "fetch-2.part", age=STRAY_AFTER + 1)
        os.utime(folder / "fetch-1.part", (disk.now, disk.now))
        assert disk.removed() == 1
        assert [path.name for path in folder.iterdir()] == ["fetch-1.part"]


def test_half_written_objects_go_after_an_hour(disk: Disk) -> None:
    folder = disk.outputs / "predictions/abc"
    stays = [
        disk.put(folder / "output-0.png", age=WEEK),
        disk.put(folder / "output-0.png#2", age=HALF_WRITTEN_AFTER - 1),
        disk.put(folder / "family photo#1", age=WEEK),
    ]
    elsewhere = disk.put(disk.outputs / "photos/output-0.png#1", age=WEEK)
    disk.put(folder / "output-0.png#1", age=HALF_WRITTEN_AFTER + 1)
    disk.put(disk.outputs / "trainings/abc/prediction.json#1", age=WEEK)
    disk.put(disk.outputs / f"quarantine/2026-03-01/{'0f' * 32}.json#1", age=WEEK)
    assert disk.removed() == 3
    assert sorted(folder.iterdir()) == sorted(stays)
    assert elsewhere.exists()


def test_what_obstore_leaves_is_known_by_its_name(disk: Disk) -> None:
    """`list` does not show it, so that only its path finds it."""
    folder = disk.outputs / "predictions/abc"
    store = LocalStore(disk.outputs, mkdir=True)
    with obstore.open_writer(store, "predictions/abc/output-0.png", buffer_size=1) as writer:
        writer.write(b"x" * 100)
        writer.flush()
        [draft] = folder.iterdir()
        wait_until(lambda: draft.stat().st_size == 100)  # `flush` leaves the write to a thread
        assert [meta for page in obstore.list(store) for meta in page] == []
        assert draft.name == "output-0.png#1"
        os.utime(draft, (0, 0))
        assert disk.removed() == 1
        disk.put(draft, age=0)  # so that the writer can end


def test_links_are_not_followed(disk: Disk, tmp_path: Path) -> None:
    mine = disk.put(tmp_path / "mine/output-0.png#1", age=WEEK)
    (disk.outputs / "predictions").mkdir(parents=True)
    (disk.outputs / "predictions/abc").symlink_to(mine.parent)
    assert disk.removed() == 0


def test_stored_files_are_walked_through_once_an_hour(disk: Disk) -> None:
    assert disk.removed() == 0
    half = disk.put(disk.outputs / "predictions/abc/output-0.png#1", age=WEEK)
    assert disk.removed() == 0
    disk.now += WALK_EVERY
    assert disk.removed() == 1
    assert not half.exists()
