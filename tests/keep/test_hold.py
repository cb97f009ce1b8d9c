"""Downloads that wait for the storage, on a real disk."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from app.core.manifest import KeptFile
from app.core.names import Kind, held_place
from app.core.outputs import OutputFile
from workers.keep.download import Fetched, park, parked
from workers.keep.output_file import Wanted

CONTENT = b"GIF89a" + bytes(10_000)


def test_a_download_on_hold_outlives_the_folder_of_the_process_that_made_it(tmp_path: Path) -> None:
    own = tmp_path / "worker-1"
    own.mkdir()
    path = own / "fetch-1.part"
    path.write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()

    park(Fetched(path, len(CONTENT), digest, CONTENT[:4096], None, ""), tmp_path, Kind.PREDICTION, "abc", 3)
    shutil.rmtree(own)

    found = parked(tmp_path, Kind.PREDICTION, "abc", 3)
    assert found is not None
    assert found.read() == CONTENT
    assert (found.size, found.sha256, found.head) == (len(CONTENT), digest, CONTENT[:4096])
    assert parked(tmp_path, Kind.PREDICTION, "abc", 4) is None


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [("csv", None), (None, "gzip"), ("3mf", "br, gzip"), ("json", "zstd"), (None, None)],
)
def test_what_was_declared_of_a_download_waits_with_it(
    tmp_path: Path, declared: str | None, encoding: str | None
) -> None:
    path = tmp_path / "fetch-1.part"
    path.write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    fetched = Fetched(path, len(CONTENT), digest, b"", None, "", declared=declared, encoding=encoding)

    park(fetched, tmp_path, Kind.PREDICTION, "abc", 3)

    found = parked(tmp_path, Kind.PREDICTION, "abc", 3)
    assert found is not None
    assert (found.declared, found.encoding, found.sha256) == (declared, encoding, digest)
    assert held_place(str(found.path and found.path.name)) == (Kind.PREDICTION, "abc")


def test_what_cannot_be_put_on_hold_is_left_where_it_is(tmp_path: Path) -> None:
    fetched = Fetched(tmp_path / "gone", 1, "0" * 64, b"x", None, "")

    park(fetched, tmp_path / "nowhere", Kind.PREDICTION, "abc", 0)

    assert parked(tmp_path, Kind.PREDICTION, "abc", 0) is None


@pytest.mark.parametrize("length", [0, 10, 1000, 1 << 20])
def test_what_a_record_notes_of_a_file_is_short_however_long_its_url(length: int) -> None:
    url = "https://replicate.delivery/" + "x" * length
    wanted = Wanted.of(Kind.PREDICTION, "abc", 0, OutputFile("/output/" + "k" * length, url))
    for file in (
        KeptFile(wanted.place.pointer, url, "output-0.png", "image/png", 7, "0" * 64),
        KeptFile(wanted.place.pointer, url, error="gone"),
    ):
        noted = wanted.noted(file)
        assert len(json.dumps(noted)) < 512
        assert wanted.recalled(json.loads(json.dumps(noted))) == file
        assert wanted.recalled(asdict(file)) == file, "as an earlier version has noted it"
    other = Wanted.of(Kind.PREDICTION, "abc", 0, OutputFile("/output", url + "y"))
    assert other.recalled(noted) is None
    assert other.recalled(None) is None
