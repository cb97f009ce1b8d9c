"""The folder of temporary files, with processes that are really killed."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.core.errors import Permanent
from tests import forked
from workers.keep.scratch import scratch

HOLD = """
import pathlib, sys
from workers.keep.scratch import scratch

with scratch(pathlib.Path(sys.argv[1])) as folder:
    (folder / "fetch-1.part").write_bytes(b"half")
    print(folder, flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(parent: Path) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """A process with a folder of its own, and that folder."""
    with forked.Popen(
        [sys.executable, "-c", HOLD, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())


def test_the_folder_is_gone_after_the_block(tmp_path: Path) -> None:
    with scratch(tmp_path / "tmp") as folder:
        (folder / "fetch-1.part").touch()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, left):
        process.kill()
    assert (left / "fetch-1.part").exists()
    with scratch(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]


def test_the_folder_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with holder(tmp_path) as (_, other), scratch(tmp_path) as folder:
        assert (other / "fetch-1.part").exists()
        assert folder != other


def test_processes_that_start_at_once_keep_their_folders(tmp_path: Path) -> None:
    with holder(tmp_path) as (_, one), holder(tmp_path) as (_, two), holder(tmp_path) as (_, three):
        assert set(tmp_path.iterdir()) == {one, two, three}


def test_a_parent_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with (
        pytest.raises(Permanent, match="data/tmp: Not a directory") as caught,
        scratch(tmp_path / "data/tmp"),
    ):
        pass
    assert caught.value.code == "data_unusable"
