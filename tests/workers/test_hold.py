"""Downloads that wait for the storage, on a real disk."""

import hashlib
import shutil
from pathlib import Path

from app.core.names import Kind
from workers.fetch import Fetched
from workers.hold import held, hold

CONTENT = b"GIF89a" + bytes(10_000)


def test_a_download_on_hold_outlives_the_folder_of_the_process_that_made_it(tmp_path: Path) -> None:
    own = tmp_path / "worker-1"
    own.mkdir()
    path = own / "fetch-1.part"
    path.write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()

    hold(Fetched(path, len(CONTENT), digest, CONTENT[:4096], None, ""), tmp_path, Kind.PREDICTION, "abc", 3)
    shutil.rmtree(own)

    found = held(tmp_path, Kind.PREDICTION, "abc", 3)
    assert found is not None
    assert found.path.read_bytes() == CONTENT
    assert (found.size, found.sha256, found.head) == (len(CONTENT), digest, CONTENT[:4096])
    assert held(tmp_path, Kind.PREDICTION, "abc", 4) is None


def test_what_cannot_be_put_on_hold_is_left_where_it_is(tmp_path: Path) -> None:
    fetched = Fetched(tmp_path / "gone", 1, "0" * 64, b"x", None, "")

    hold(fetched, tmp_path / "nowhere", Kind.PREDICTION, "abc", 0)

    assert held(tmp_path, Kind.PREDICTION, "abc", 0) is None
