"""What killed processes leave on a disk, and what must stay there."""

import os
import time
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore

from app.core.lifecycle import HALF_WRITTEN_AFTER, STRAY_AFTER, Repair
from app.core.names import Kind
from app.maintain.strays import Strays
from tests.keep.test_scratch import holder
from tests.receive.web import wait_until
from workers.repair.files import WALK_EVERY, Leftovers

WEEK = 7 * 86400.0


class Disk:
    """Two folders, and a clock that stands still until it is told otherwise."""

    def __init__(self, folder: Path) -> None:
        self.temporary, self.outputs = folder / "tmp", folder / "outputs"
        self.now = time.time()
        self.known: set[tuple[Kind, str]] = set()
        self.gone: set[tuple[Kind, str]] = set()
        self.kept: set[tuple[Kind, str]] = set()
        strays = Strays(
            self.temporary,
            self.outputs,
            held_for=WEEK,
            is_known=lambda *place: place in self.known,
            is_removed=lambda *place: place in self.gone,
            is_kept=lambda *place: place in self.kept,
            now=lambda: self.now,
        )
        self.leftovers = Leftovers(self.temporary, strays, now=lambda: self.now)

    def put(self, path: Path, *, age: float) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        os.utime(path, (self.now - age, self.now - age))
        return path

    def removed(self) -> int:
        return self.leftovers.run()[Repair.FILE_REMOVED]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_folders_that_do_not_exist_yet_hold_nothing(disk: Disk) -> None:
    assert disk.removed() == 0
    assert not disk.temporary.exists()
    assert not disk.outputs.exists()


def test_a_remote_store_has_no_folder_to_walk(tmp_path: Path) -> None:
    strays = Strays(
        tmp_path,
        None,
        held_for=WEEK,
        is_known=lambda *_: True,
        is_removed=lambda *_: False,
        is_kept=lambda *_: False,
    )
    assert Leftovers(tmp_path, strays).run()[Repair.FILE_REMOVED] == 0


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


def test_a_download_whose_prediction_still_waits_for_the_storage_stays_however_old(disk: Disk) -> None:
    disk.put(disk.temporary / "held.prediction.abc.0.d1e2", age=10 * WEEK)
    disk.known.add((Kind.PREDICTION, "abc"))
    assert disk.removed() == 0
    disk.known.clear()
    assert disk.removed() == 1


def test_a_download_of_what_another_host_has_stored_meanwhile_goes(disk: Disk) -> None:
    disk.put(disk.temporary / "held.prediction.abc.0.d1e2", age=1)
    disk.known.add((Kind.PREDICTION, "abc"))
    assert disk.removed() == 0
    disk.kept.add((Kind.PREDICTION, "abc"))
    assert disk.removed() == 1


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
