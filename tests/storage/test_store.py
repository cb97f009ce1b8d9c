"""The object store on a real disk: durable, whole or absent, and clear about what is wrong."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import OutkeepError, Permanent, Transient
from app.core.names import Kind
from app.storage.store import Storage
from tests import forked
from tests.receive.web import wait_until

NOW = datetime(2026, 3, 16, tzinfo=UTC)
NOBODY = 65534
ROOT = Path(__file__).parents[2]
NAME = "predictions/abc/output-0.bin"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage((tmp_path / "kept here").as_uri())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(3 << 20) + b"end")
    return path


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another disk than that of the storage."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def test_a_stored_file_is_byte_exact(storage: Storage, source: Path, tmp_path: Path) -> None:
    content = source.read_bytes()
    storage.put_file(NAME, source)

    assert (tmp_path / "kept here" / NAME).read_bytes() == content
    assert storage.get(NAME) == content
    assert not source.exists()


def test_a_file_on_another_disk_is_stored_all_the_same(storage: Storage, elsewhere: Path) -> None:
    source = elsewhere / "source"
    source.write_bytes(b"x" * (3 << 20))
    assert source.stat().st_dev != Path(tempfile.gettempdir()).stat().st_dev
    storage.put_file(NAME, source)

    assert storage.get(NAME) == b"x" * (3 << 20)
    assert not source.exists()


def test_a_private_file_is_stored_as_readable_as_the_others(
    storage: Storage, source: Path, tmp_path: Path
) -> None:
    source.chmod(0o600)
    storage.put_file(NAME, source)
    storage.put_bytes("predictions/abc/prediction.json", b"{}")

    folder = tmp_path / "kept here" / "predictions" / "abc"
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1


def test_a_file_that_cannot_be_moved_stays(storage: Storage, source: Path, tmp_path: Path) -> None:
    content = source.read_bytes()
    (tmp_path / "kept here" / NAME / "a folder in its place").mkdir(parents=True)
    with pytest.raises(Transient):
        storage.put_file(NAME, source)

    assert source.read_bytes() == content


def test_looking_at_a_store_that_is_not_there_finds_nothing_and_creates_nothing(tmp_path: Path) -> None:
    storage = Storage((tmp_path / "a" / "b").as_uri())

    assert storage.get(NAME) is None
    assert storage.head(NAME) is None
    assert list(storage.names("predictions")) == []
    assert storage.read_manifest(Kind.PREDICTION, "abc") is None
    assert list(tmp_path.iterdir()) == []


def test_a_relative_data_folder_survives_a_change_of_the_working_directory(tmp_path: Path) -> None:
    code = (
        "import os; from app.settings import load; from app.storage.store import Storage\n"
        "storage = Storage(load({'OUTKEEP_DATA': 'relative'}).storage_url); os.chdir('/')\n"
        "storage.put_bytes('a/b', b'x')"
    )
    forked.run([sys.executable, "-c", code], cwd=tmp_path, check=True)

    assert (tmp_path / "relative" / "outputs" / "a" / "b").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "a//b", "a\0b", "a\nb", "staging#1", "/"])
def test_an_odd_name_is_refused_and_nothing_is_written_outside(
    storage: Storage, tmp_path: Path, name: str
) -> None:
    for write in (storage.put_bytes, storage.create):
        with pytest.raises(OutkeepError):
            write(name, b"x")

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == []


def run_child(
    code: str, storage: Storage, *arguments: str, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run `code` with `storage` in a process of its own, which prints what it saw."""
    program = f"{_CHILD}\n{code}"
    command = [sys.executable, "-c", program, storage.url, *arguments]
    return forked.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, **options)


_CHILD = """
import errno, os, sys
from pathlib import Path
from app.core.errors import OutkeepError
from app.storage.store import Storage
from tests.kernel import fill_the_disk, forbid_fsync, forbid_new_files

def attempt(name, write, *arguments):
    try:
        print(name, write(*arguments))
    except OutkeepError as error:
        print(name, type(error).__name__, error.code)

storage = Storage(sys.argv[1])
"""

_WRITES = """
attempt("file", storage.put_file, "a/file", Path(sys.argv[2]))
attempt("bytes", storage.put_bytes, "b/bytes", b"x")
attempt("note", storage.note, "b/note", b"x")
attempt("create", storage.create, "c/create", b"x")
"""


def test_a_write_succeeds_only_after_its_fsync(storage: Storage, source: Path, tmp_path: Path) -> None:
    failed = [f"{name} StorageFailure storage_unavailable" for name in ("file", "bytes", "note", "create")]
    without = run_child(f"forbid_fsync()\n{_WRITES}", storage, str(source))
    assert without.stdout.splitlines() == failed, without.stderr
    assert list(storage.names("c")) == []

    # What somebody else has left behind is made durable by whoever finds it there.
    (tmp_path / "kept here" / "c" / "create").write_bytes(b"x")
    again = run_child(f"forbid_fsync()\n{_WRITES}", storage, str(source))
    assert again.stdout.splitlines() == failed, again.stderr

    with_fsync = run_child(_WRITES, storage, str(source))
    assert with_fsync.stdout.splitlines() == ["file None", "bytes None", "note None", "create False"]


def test_a_removal_succeeds_only_after_its_fsync(storage: Storage) -> None:
    names = ["a/one", "a/two", "b/three"]
    for name in names:
        storage.put_bytes(name, b"x")
    code = f"attempt('removal', storage.remove, {names})\nattempt('again', storage.remove, {names})"

    without = run_child(f"forbid_fsync()\n{code}", storage)
    failed = "StorageFailure storage_unavailable"
    assert without.stdout.splitlines() == [f"removal {failed}", f"again {failed}"], without.stderr
    assert run_child(code, storage).stdout.splitlines() == ["removal None", "again None"]
    assert list(storage.names("")) == []


_SYNCS = """
def tell(frame, event, called):
    # The interpreter tells of each call; the argument is the one number among the caller's variables.
    if event == "c_call" and called is os.fsync:
        (descriptor,) = [value for value in frame.f_locals.values() if isinstance(value, int)]
        print(os.readlink(f"/proc/self/fd/{descriptor}").partition("#")[0])

sys.setprofile(tell)
"""


@pytest.mark.parametrize(
    ("write", "synced"),
    [
        # The bytes before the name: a power cut must not put half a file in the place of a whole one.
        (
            'storage.put_file("predictions/a/output-0.bin", Path(sys.argv[2]))',
            "source outputs/predictions/a outputs/predictions outputs",
        ),
        # One sync of the folder for all of a prediction.
        (
            """
files = [(f"predictions/{id}/output-{n}.bin", b"x", None) for id in "ab" for n in (0, 1)]
storage._place.write(files[:2], ("predictions/a/prediction.json", b"{}"))
storage._place.write(files[2:], ("predictions/b/prediction.json", b"{}"))""",
            """
outputs/predictions/a/output-0.bin outputs/predictions/a/output-1.bin outputs/predictions/a/prediction.json
outputs/predictions/a outputs/predictions outputs
outputs/predictions/b/output-0.bin outputs/predictions/b/output-1.bin outputs/predictions/b/prediction.json
outputs/predictions/b outputs/predictions""",
        ),
        # What is there may be of a process that was killed before its sync.
        (
            'for _ in "12": storage.create("a/prediction.json", b"{}")',
            """
outputs/a/prediction.json outputs/a outputs
outputs/a/prediction.json outputs/a/prediction.json outputs/a""",
        ),
        ('storage.note("a/told-one.json", b"{}")', "outputs/a/told-one.json"),
    ],
    ids=["large", "small", "again", "outcome"],
)
def test_bytes_are_synced_and_each_folder_once(source: Path, write: str, synced: str) -> None:
    storage = Storage((source.parent / "outputs").as_uri())
    _, *lines = run_child(_SYNCS + write, storage, str(source)).stdout.splitlines()
    assert [str(Path(line).relative_to(source.parent)) for line in lines] == synced.split()


def test_a_killed_write_leaves_nothing_visible(storage: Storage, tmp_path: Path, elsewhere: Path) -> None:
    storage.put_bytes(NAME, b"the whole file from before")
    pipe = elsewhere / "slow source"
    os.mkfifo(pipe)
    command = [
        sys.executable,
        "-c",
        f'{_CHILD}\nstorage.put_file("{NAME}", Path(sys.argv[2]))',
        storage.url,
        str(pipe),
    ]
    with forked.Popen(command) as process, pipe.open("wb") as feed:
        feed.write(b"x" * (5 << 20))
        feed.flush()
        folder = tmp_path / "kept here" / "predictions" / "abc"
        wait_until(lambda: any("#" in path.name and path.stat().st_size for path in folder.iterdir()))
        process.send_signal(signal.SIGKILL)
        process.wait()

    assert storage.get(NAME) == b"the whole file from before"
    assert list(storage.names("predictions")) == [NAME]


_FULL = """
attempt("file", storage.put_file, "a/file", Path(sys.argv[2]))
attempt("bytes", storage.put_bytes, "a/bytes", b"x" * (2 << 20))
attempt("create", storage.create, "a/create", b"x" * (2 << 20))
print("visible", list(storage.names("")))
"""


def test_a_full_disk_is_said_to_be_full_and_nothing_half_written_shows(
    storage: Storage, elsewhere: Path
) -> None:
    source = elsewhere / "source"  # what lies on the disk of the storage is moved, which takes no room
    source.write_bytes(b"x" * (3 << 20))

    seen = run_child(f"fill_the_disk()\n{_FULL}", storage, str(source))

    expected = [f"{name} StorageFailure storage_full" for name in ("file", "bytes", "create")]
    assert seen.stdout.splitlines() == [*expected, "visible []"], seen.stderr


@pytest.mark.parametrize(
    ("error", "code"), [("ENOSPC", "storage_full"), ("EROFS", "storage_denied")], ids=["inodes", "ro"]
)
def test_a_disk_without_inodes_or_without_writing_is_told(
    storage: Storage, elsewhere: Path, error: str, code: str
) -> None:
    source = elsewhere / "source"
    source.write_bytes(b"x")

    seen = run_child(f"forbid_new_files(errno.{error})\n{_WRITES}", storage, str(source))

    expected = [f"{name} StorageFailure {code}" for name in ("file", "bytes", "note", "create")]
    assert seen.stdout.splitlines() == expected, seen.stderr
    assert source.read_bytes() == b"x"
    assert list(storage.names("")) == []


_AS_NOBODY = f"if os.getuid() == 0: os.setgid({NOBODY}); os.setuid({NOBODY})\n"


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A new folder that other users can reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="outkeep-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_folder_that_may_not_be_written_is_told_apart(open_path: Path) -> None:
    storage = Storage((open_path / "outputs").as_uri())
    storage.put_bytes("a/old", b"old")
    for folder in (open_path / "outputs" / "a", open_path / "outputs"):
        folder.chmod(0o555)
    source = open_path / "source"
    source.write_bytes(b"x")
    source.chmod(0o644)

    code = f"""
{_AS_NOBODY}
attempt("old", storage.get, "a/old")
{_WRITES.replace("b/", "a/").replace("c/", "a/")}
attempt("check", storage.check_writable)
"""
    seen = run_child(code, storage, str(source))

    assert seen.stdout.splitlines() == [
        "old b'old'",
        "file StorageFailure storage_denied",
        "bytes StorageFailure storage_denied",
        "note StorageFailure storage_denied",
        "create StorageFailure storage_denied",
        "check Permanent storage_unusable",
    ], seen.stderr


def test_a_root_that_cannot_be_made_is_told_at_the_start(open_path: Path) -> None:
    open_path.chmod(0o555)
    code = (
        f'{_AS_NOBODY}\nattempt("check", storage.check_writable)\nattempt("put", storage.put_bytes, "a", b"")'
    )

    seen = run_child(code, Storage((open_path / "outputs").as_uri()))

    assert seen.stdout.splitlines() == [
        "check Permanent storage_unusable",
        "put StorageFailure storage_denied",
    ]


def test_a_file_in_the_place_of_the_root_is_told(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    storage = Storage((tmp_path / "outputs").as_uri())

    with pytest.raises(Permanent, match="cannot write to"):
        storage.check_writable()
    with pytest.raises(Transient):
        storage.put_bytes("a", b"")
