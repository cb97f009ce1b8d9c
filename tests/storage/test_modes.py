"""Other users of the host: what is made is closed to them, whatever the folders were before."""

import stat
import time
from pathlib import Path

import pytest

from app.core.findings import Level
from app.core.signature import parse_signing_keys, signed_headers
from app.health.doctor import diagnose
from app.receive.listening import free_port
from tests.e2e.running import running_up, until
from tests.receive.web import Web, environment, in_process, prediction, signed

OPEN = 0o755


def modes(folder: Path) -> dict[str, int]:
    """What lies below a folder, with its permissions."""
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode)
        for path in folder.rglob("*")
        if not path.is_symlink()
    }


def opened(folder: Path) -> dict[str, str]:
    """What others may do anything with."""
    return {name: oct(mode) for name, mode in modes(folder).items() if mode & 0o077}


def test_what_up_makes_in_folders_that_were_open_is_closed(tmp_path: Path) -> None:
    data, stored = tmp_path / "data", tmp_path / "elsewhere" / "outputs"
    for folder in (data, data / "tmp", data / "spool", stored):
        folder.mkdir(parents=True, mode=OPEN)
    for folder in (data, data / "tmp", data / "spool", stored):
        folder.chmod(OPEN)
    with running_up(tmp_path, settings={"OUTKEEP_STORAGE": stored.as_uri()}) as up:
        web = Web(int(up.environment["PORT"]), tmp_path)

        def deliver(body: bytes, identity: str) -> None:
            headers = signed_headers(identity, int(time.time()), body, parse_signing_keys(up.secret))
            assert web.ask("POST", "/webhooks/replicate", body, headers).status == 202

        deliver(prediction("small", output="data:image/png;base64,iVBORw0KGgo="), "msg_1")
        deliver(prediction("large", logs="x" * (2 << 20)), "msg_2")
        deliver(b"\xff no prediction", "msg_3")
        for name in ("small", "large"):
            until((stored / "predictions" / name / "prediction.json").exists, f"{name} is stored")
        assert list((stored / "quarantine").rglob("*.json"))
        assert opened(data).keys() == {"tmp", "spool"}  # as they were
        assert opened(stored) == {}
        assert {"valkey", "secret.key", "up.lock"} <= modes(data).keys()


def test_what_a_receiver_spools_is_closed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(OPEN)
    with in_process(f"redis://127.0.0.1:{free_port()}", tmp_path, OUTKEEP_DATA=str(data)) as (web, _):
        assert web.outcome(prediction()) == "spooled"
        assert list((data / "spool").iterdir())
        assert opened(data) == {}


@pytest.mark.usefixtures("redis")  # emptied: it belongs to one storage
@pytest.mark.parametrize(
    ("share", "folders", "files"),
    [("nobody", 0o700, 0o600), ("group", 0o750, 0o640), ("everybody", 0o755, 0o644)],
)
def test_what_is_stored_is_shared_as_it_was_asked_for(
    tmp_path: Path, valkey_url: str, share: str, folders: int, files: int
) -> None:
    stored = tmp_path / "stored"
    own = {"OUTKEEP_STORAGE": stored.as_uri(), "OUTKEEP_SHARE_FILES": share}
    with in_process(valkey_url, tmp_path, **own) as (web, _):
        body = b"\xff no prediction"
        assert web.ask("POST", "/webhooks/replicate", body, signed(body)).json()["outcome"] == "quarantined"
    found = modes(stored)

    assert {mode for name, mode in found.items() if (stored / name).is_dir()} == {folders}
    assert {mode for name, mode in found.items() if (stored / name).is_file()} == {files}


@pytest.mark.parametrize(
    ("share", "mode", "level"),
    [
        ("nobody", 0o700, Level.OK),
        ("nobody", 0o750, Level.WARN),
        ("nobody", 0o711, Level.WARN),
        ("nobody", 0o704, Level.WARN),
        ("group", 0o750, Level.OK),
        ("group", 0o755, Level.WARN),
        ("everybody", 0o755, Level.OK),
    ],
)
def test_doctor_warns_of_folders_that_others_may_read(
    tmp_path: Path, share: str, mode: int, level: Level
) -> None:
    data, stored = tmp_path / "data", tmp_path / "stored"
    for folder in (data, stored, stored / "predictions"):
        folder.mkdir(mode=0o700)
    for folder in (data, stored, stored / "predictions"):
        folder.chmod(mode)
        own = environment(
            "redis://127.0.0.1:1", data, OUTKEEP_STORAGE=stored.as_uri(), OUTKEEP_SHARE_FILES=share
        )
        (found,) = [finding for finding in diagnose(own, tmp_path) if finding.check == "folders"]
        assert found.level is level
        assert (str(folder) in found.detail) is (level is Level.WARN)
        folder.chmod(0o700)
