"""What every store must do alike: a folder of this host, and a bucket."""

import asyncio
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import OutkeepError
from app.core.manifest import KeptFile, Manifest, Receipt
from app.core.names import Kind
from app.core.prediction import parse
from app.storage.store import Storage
from tests.bucket import S3
from tests.receive.web import prediction

NOW = datetime(2026, 3, 16, tzinfo=UTC)
NAME = "predictions/abc/output-0.bin"


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "file":
        return Storage((tmp_path / "kept here").as_uri())
    s3: S3 = request.getfixturevalue("s3_here")
    return Storage(s3.url)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(3 << 20) + b"end")
    return path


def test_a_file_is_stored_byte_for_byte_and_gone_from_where_it_was(storage: Storage, source: Path) -> None:
    content = source.read_bytes()
    storage.put_file(NAME, source)

    assert storage.get(NAME) == content
    assert not source.exists()


def test_a_file_of_many_parts_is_stored_byte_for_byte(storage: Storage, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(os.urandom((20 << 20) + 1))
    content = path.read_bytes()
    storage.put_file(NAME, path)

    assert storage.get(NAME) == content


def test_an_empty_file_is_stored(storage: Storage, tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    storage.put_file(NAME, path)

    assert storage.get(NAME) == b""


def test_a_part_is_streamed_exactly(storage: Storage) -> None:
    content = os.urandom(10 << 20)
    storage.put_bytes(NAME, content)

    async def part(start: int, end: int) -> bytes:
        return b"".join([piece async for piece in storage.stream(NAME, start, end)])

    for start, end in [(0, len(content)), (0, 1), (5, 5 << 20), (len(content) - 1, len(content))]:
        assert asyncio.run(part(start, end)) == content[start:end]


def test_what_is_removed_is_gone_and_removing_nothing_is_fine(storage: Storage) -> None:
    others = [f"{NAME}-{number}" for number in range(3)]
    storage.remove([NAME])
    for name in (NAME, *others):
        storage.put_bytes(name, b"x")
    storage.remove([NAME])
    storage.remove([NAME, *others[:2]])

    assert list(storage.names("predictions")) == others[2:]


def test_nothing_is_where_nothing_was_stored(storage: Storage) -> None:
    assert storage.get(NAME) is None
    assert storage.head(NAME) is None
    assert list(storage.names("predictions")) == []
    assert storage.read_manifest(Kind.PREDICTION, "abc") is None


def test_a_store_that_takes_writes_passes_the_check(storage: Storage) -> None:
    storage.check_writable()


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "a//b"])
def test_a_name_that_leads_elsewhere_is_refused(storage: Storage, name: str) -> None:
    for write in (storage.put_bytes, storage.create):
        with pytest.raises(OutkeepError):
            write(name, b"x")

    assert list(storage.names("")) == []


def test_a_file_is_overwritten_and_a_created_object_is_not(storage: Storage, source: Path) -> None:
    content = source.read_bytes()
    storage.put_bytes(NAME, b"before")
    storage.put_file(NAME, source)
    assert storage.create(NAME, b"other") is False
    assert storage.get(NAME) == content

    assert storage.create("new", b"first") is True
    assert storage.get("new") == b"first"


def test_head_tells_size_and_a_quoted_etag_that_changes(storage: Storage) -> None:
    storage.put_bytes(NAME, b"12345")
    first = storage.head(NAME)
    storage.put_bytes(NAME, b"123456")
    second = storage.head(NAME)

    assert first is not None
    assert second is not None
    assert (first.size, second.size) == (5, 6)
    assert first.etag != second.etag
    assert first.etag is not None
    assert first.etag.startswith('"')
    assert first.etag.endswith('"')


def test_a_folder_is_no_object(storage: Storage) -> None:
    storage.put_bytes(NAME, b"x")

    assert storage.head("predictions/abc") is None
    assert storage.get("predictions/abc") is None


def test_names_lists_what_lies_below_a_folder(storage: Storage) -> None:
    for name in ("predictions/a/one", "predictions/a/two", "predictions/ab/three"):
        storage.put_bytes(name, b"")

    assert sorted(storage.names("predictions/a")) == ["predictions/a/one", "predictions/a/two"]


def manifest(*losses: str, output: str = "") -> Manifest:
    files = tuple(KeptFile(pointer=f"/output/{code}", source=None, error=code) for code in losses)
    parsed = parse(prediction("abc"), Kind.PREDICTION)
    return Manifest(parsed, files, output, Receipt(NOW, "msg_1"), NOW)


def test_the_first_manifest_without_losses_is_final(storage: Storage) -> None:
    first, second = manifest(output="first"), manifest(output="second")

    assert storage.commit(first) is first
    assert storage.commit(second) == first
    assert storage.read_manifest(Kind.PREDICTION, "abc") == first


def test_fewer_losses_replace_more_and_never_the_reverse(storage: Storage) -> None:
    two, one, other, none = manifest("a", "b"), manifest("a"), manifest("c"), manifest()

    assert storage.commit(two) is two
    assert storage.commit(one) is one
    assert storage.commit(other) == one
    assert storage.commit(two) == one
    assert storage.commit(none) is none
    assert storage.commit(one) == none
    assert storage.read_manifest(Kind.PREDICTION, "abc") == none


@pytest.mark.parametrize("keep", [0, 1, 0.5, 0.99])
def test_a_torn_manifest_counts_as_none_and_is_replaced(storage: Storage, keep: float) -> None:
    whole = manifest().to_json()
    torn = whole[: int(keep) if keep >= 1 else int(len(whole) * keep)]
    storage.put_bytes("predictions/abc/prediction.json", torn)
    assert storage.read_manifest(Kind.PREDICTION, "abc") is None

    storage.commit(manifest("a"))

    assert storage.read_manifest(Kind.PREDICTION, "abc") == manifest("a")


def test_a_manifest_holds_the_object_as_received(storage: Storage, samples: list[dict[str, Any]]) -> None:
    for number, sample in enumerate(samples):
        kind = Kind.TRAINING if sample["kind"] == "training" else Kind.PREDICTION
        received = {**sample["object"], "id": f"sample-{number}"}
        parsed = parse(json.dumps(received).encode(), kind)
        storage.commit(Manifest(parsed, (), parsed.output, Receipt(NOW, None), NOW))

        stored = storage.get(f"{kind.folder}/{parsed.id}/prediction.json")
        assert stored is not None
        assert json.loads(stored)["prediction"] == received
