"""`outkeep verify`: stored files are read again and compared, in a folder and in a bucket."""

import hashlib
import json
import os
import pty
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli.root import cli
from app.core.errors import OutkeepError
from app.core.manifest import KeptFile, Manifest, Receipt, farewell
from app.core.names import Kind, object_name
from app.core.prediction import parse
from app.maintain.verify import Verifier, everything
from app.storage.store import Storage
from tests import forked
from tests.bucket import Asked, Refusal, faulty_proxy
from tests.receive.web import prediction
from tests.small_s3 import SmallS3
from tests.storage.test_everywhere import NOW
from tests.storage.test_stores import store

__all__ = ["store"]  # a fixture


@pytest.fixture(params=["file", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, store: SmallS3) -> Storage:
    return Storage((tmp_path / "outputs").as_uri() if request.param == "file" else store.s3.url)


def keep(
    storage: Storage, identity: str, *contents: bytes, kind: Kind = Kind.PREDICTION, at: datetime = NOW
) -> Manifest:
    """Store a prediction with these files, and one more that was lost."""
    files = [KeptFile("/output/9", "https://x/9", error="status_404")]
    for number, content in enumerate(contents):
        name = f"output-{number}.bin"
        storage.put_bytes(object_name(kind, identity, name), content)
        digest = hashlib.sha256(content).hexdigest()
        files.append(KeptFile(f"/output/{number}", "https://x/", name, "x/y", len(content), digest))
    parsed = parse(prediction(identity), kind)
    manifest = Manifest(parsed, tuple(files), [], Receipt(at, f"msg_{identity}"), at)
    return storage.commit(manifest)


def verify(storage: Storage, *arguments: str) -> tuple[int, list[str], str]:
    """Run the command; exit code, lines, and what it says to the operator."""
    ended = CliRunner().invoke(cli, ["verify", *arguments], env={"OUTKEEP_STORAGE": storage.url})
    code = 1 if isinstance(ended.exception, OutkeepError) else ended.exit_code
    return code, ended.stdout.splitlines(), ended.stderr + (str(ended.exception) if ended.exception else "")


def test_what_is_as_it_was_is_counted_and_nothing_else_is_said(storage: Storage) -> None:
    keep(storage, "one", b"first", b"", os.urandom(5 << 20))
    keep(storage, "two", b"second", kind=Kind.TRAINING)
    keep(storage, "none")

    assert verify(storage, "--all") == (
        0, [], "4 files of 3 predictions (5.0MiB): all are as they were stored\n",
    )  # fmt: skip
    assert verify(storage, "one", "two")[0] == 0
    code, (line,), _ = verify(storage, "--all", "--json")
    assert (code, json.loads(line)) == (
        0, {"ok": True, "predictions": 3, "files": 4, "bytes": (5 << 20) + 11, "odd": 0},
    )  # fmt: skip


def test_each_file_that_is_missing_or_differs_has_a_line(storage: Storage) -> None:
    keep(storage, "one", b"0123456789", b"0123456789", b"0123456789", b"kept")
    keep(storage, "two", b"second", kind=Kind.TRAINING)
    keep(storage, "fine", b"fine")
    storage.remove(["predictions/one/output-0.bin"])
    storage.put_bytes("predictions/one/output-1.bin", b"012345678")
    storage.put_bytes("predictions/one/output-2.bin", b"012345678X")
    storage.put_bytes("trainings/two/output-0.bin", b"")
    keep(storage, "torn")
    storage.put_bytes("predictions/torn/prediction.json", b'{"outkeep": 1, "kind"')
    keep(storage, "odd")
    storage.put_bytes("predictions/odd/prediction.json", b'{"outkeep": 7}')

    code, lines, told = verify(storage, "--all")
    before, after = (hashlib.sha256(text).hexdigest() for text in (b"0123456789", b"012345678X"))
    assert code == 1
    assert sorted(line for line in lines if "prediction.json" not in line) == [
        "differs predictions/one/output-1.bin: it has 9 bytes, and had 10",
        f"differs predictions/one/output-2.bin: its SHA-256 is {after}, and was {before}",
        "differs trainings/two/output-0.bin: it has 0 bytes, and had 6",
        "missing predictions/one/output-0.bin: 10 bytes are gone",
    ]
    assert sorted(line.partition(":")[0] for line in lines if "prediction.json" in line) == [
        "unreadable predictions/odd/prediction.json",
        "unreadable predictions/torn/prediction.json",
    ]
    assert "6 are missing or differ" in told
    assert verify(storage, "fine")[0] == 0
    assert len(verify(storage, "one")[1]) == 3
    code, lines, _ = verify(storage, "two", "--json")
    assert [json.loads(line).get("problem") for line in lines] == ["differs", None]
    assert json.loads(lines[0])["object"] == "trainings/two/output-0.bin"


@pytest.mark.parametrize("arguments", [["--all"], ["--since", "2020-01-01T00:00:00Z"], ["p0", "p1"]])
def test_a_terminal_sees_a_bar_and_nobody_else_does(tmp_path: Path, arguments: list[str]) -> None:
    storage = Storage((tmp_path / "outputs").as_uri())
    for number in range(120):
        keep(storage, f"p{number}", b"content")
    storage.remove(["predictions/p1/output-0.bin"])
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "app.cli", "verify", *arguments]
    own = {**os.environ, "OUTKEEP_STORAGE": storage.url, "OUTKEEP_DATA": str(tmp_path)}
    with forked.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=own, text=True) as child:
        os.close(theirs)
        seen = b""
        while b"missing or differ\r\n" not in seen:
            seen += os.read(ours, 65536)
        assert child.stdout is not None
        assert child.stdout.read() == "missing predictions/p1/output-0.bin: 7 bytes are gone\n"
        assert child.wait() == 1
    os.close(ours)
    count = len(arguments) if arguments[0] == "p0" else 120
    assert b"verified  [####" in seen
    assert b"%d/%d" % (count, count) in seen
    assert b"[####" not in verify(storage, *arguments)[2].encode()


def test_an_empty_storage_is_not_called_sound(tmp_path: Path) -> None:
    """Perhaps it is another one than was meant."""
    empty = Storage((tmp_path / "outputs").as_uri())
    assert verify(empty, "--all") == (0, [], f"nothing is stored in {empty.url}\n")
    assert verify(empty, "--since", "1d") == (0, [], f"nothing was stored since then in {empty.url}\n")
    code, [line], _ = verify(empty, "--all", "--json")
    assert (code, json.loads(line)) == (0, {"ok": True, "predictions": 0, "files": 0, "bytes": 0, "odd": 0})


def test_nothing_of_an_id_is_missing_and_what_is_being_removed_is_not(storage: Storage) -> None:
    keep(storage, "gone", b"x")
    storage.put_bytes("predictions/gone/prediction.json", farewell(NOW))

    assert verify(storage, "never")[:2] == (1, ["missing predictions/never: nothing is stored of it"])
    assert verify(storage, "--all")[:2] == (0, [])


def test_since_passes_over_what_was_stored_before(storage: Storage) -> None:
    keep(storage, "old", b"old", at=NOW - timedelta(days=3))
    keep(storage, "new", b"new", at=datetime.now(NOW.tzinfo))
    storage.remove(["predictions/old/output-0.bin"])

    assert verify(storage, "--since", "1d")[0] == 0
    assert verify(storage, "--since", "2020-01-01T00:00:00Z")[0] == 1
    storage.remove(["predictions/new/output-0.bin"])
    assert verify(storage, "--since", "1d")[1] == ["missing predictions/new/output-0.bin: 3 bytes are gone"]


def test_a_store_whose_clock_is_behind_hides_nothing_from_since(tmp_path: Path) -> None:
    storage, now = Storage(tmp_path.as_uri()), datetime.now(NOW.tzinfo)
    keep(storage, "new", b"new", at=now - timedelta(minutes=50))
    behind = (now - timedelta(minutes=90)).timestamp()
    os.utime(tmp_path / "predictions/new/prediction.json", (behind, behind))
    storage.remove(["predictions/new/output-0.bin"])

    assert verify(storage, "--since", "1h")[0] == 1


@pytest.mark.parametrize("becomes", ["there", "removed"])
def test_what_differs_is_looked_at_once_more(
    store: SmallS3, monkeypatch: pytest.MonkeyPatch, becomes: str
) -> None:
    asked: list[str] = []

    def rule(request: Asked) -> Refusal | None:
        if not request.path.endswith("output-0.bin"):
            return None
        asked.append(request.path)
        if becomes == "removed":
            store.overwrite("predictions/one/prediction.json", farewell(NOW))
        return Refusal(404, "NoSuchKey") if len(asked) == 1 or becomes == "removed" else None

    with faulty_proxy(store.s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.s3.endpoint)
        storage = Storage(store.s3.url)
        keep(storage, "one", b"first")
        proxy.rule = rule
        assert verify(storage, "--all")[:2] == (0, [])
    assert len(asked) == (2 if becomes == "there" else 1)


@pytest.mark.parametrize(
    "arguments", ["", "--all one", "--all --since 1d", "a/b", "--since x", "--since 1d one"]
)
def test_it_is_said_what_can_be_verified(tmp_path: Path, arguments: str) -> None:
    assert verify(Storage(tmp_path.as_uri()), *arguments.split())[0] == 2


def test_a_store_that_fails_is_no_file_that_differs(store: SmallS3) -> None:
    storage = Storage(store.s3.url)
    keep(storage, "one", b"first")
    store.lacks["get"] = Refusal(403, "AccessDenied")
    code, lines, _ = verify(storage, "one")

    assert code == 1
    assert lines[0].startswith("unreadable predictions/one/prediction.json: ")
    assert not any(line.startswith(("missing", "differs")) for line in lines)
    store.lacks = {"range": None, "head": Refusal(405), "list": Refusal(500)}
    assert verify(storage, "one")[0] == 0
    code, lines, told = verify(storage, "--all")
    assert (code, lines) == (1, [])
    assert "500" in told


def test_memory_does_not_grow_with_what_is_stored(tmp_path: Path) -> None:
    storage = Storage(tmp_path.as_uri())
    kept = keep(storage, "large", os.urandom(64 << 20))
    for number in range(300):
        parsed = parse(prediction(f"p-{number}", logs="x" * (64 << 10)), Kind.PREDICTION)
        storage.commit(replace(kept, prediction=parsed, files=()))
    tracemalloc.start()
    found = sum(one is not None for one in Verifier(storage).verify(everything(storage, None)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert found == 301
    assert peak < 24 << 20, f"{peak >> 20} MiB"
