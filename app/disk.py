"""Files of ours on a local disk: writes that survive a power cut, room, and whose they are."""

import os
import pwd
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from app.core.errors import ConfigurationError

KEY_FILE = "secret.key"
_WRITTEN = frozenset((
    KEY_FILE, "outputs", "spool", "tmp", "up.lock", "valkey", "predictions", "trainings", "quarantine",
    "claims", "outkeep.json",
))  # fmt: skip
"""What stands in the folders of data and storage once a service has run."""


def fsync(path: Path) -> None:
    """Make the bytes of a file, or the entries of a folder, survive a power cut; raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(descriptor: int, data: bytes) -> None:
    """Write all of `data`; raises `OSError`."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def make_folder(root: Path, *, mode: int = 0o777) -> None:
    """Make a folder (of `mode`, less the umask) and those above it, all of them surviving a power cut.

    Raises `OSError`.
    """
    if root.is_dir():
        return
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(mode, parents=True, exist_ok=True)
    for folder in missing:
        fsync(folder.parent)


def prove_writable(folder: Path) -> None:
    """Prove that a folder can be written, or made if it is missing, and leave nothing; raises `OSError`."""
    with tempfile.TemporaryFile(dir=existing(folder)):
        pass


def existing(folder: Path) -> Path:
    """A folder, or what is there of those above it."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def lack_of_room(folder: Path, size: int, setting: int | None) -> str | None:
    """Why no `size` bytes may be written to a folder; None when they may. Raises `OSError`.

    Half of what downloads leave free must stay so: else they could fill the disk up to where no delivery can
    be kept.
    """
    place = existing(folder)
    free, floor = shutil.disk_usage(place).free, floor_of(place, setting) // 2
    if free - size >= floor:
        return None
    return (
        f"the disk of {folder} is too full: {free >> 20} MiB are free, "
        f"and {floor >> 20} MiB must stay free; make room"
    )


def floor_of(folder: Path, setting: int | None) -> int:
    """Bytes that downloads leave free on a folder's disk: as set, or the larger of 1 GiB and 5 %."""
    return setting if setting is not None else max(1 << 30, shutil.disk_usage(folder).total // 20)


def require_owner(*folders: Path) -> None:
    """Raise `ConfigurationError` unless this user may write beside what the service has written there."""
    user = os.geteuid()
    problems = [problem for folder in folders for problem in owner_problems("OUTKEEP_DATA", folder, user)]
    if problems:
        raise ConfigurationError(problems)


def owner_problems(name: str, folder: Path, user: int) -> list[str]:
    """That what lies in a folder belongs to another user, who could not change what `user` would make there.

    A folder of ours that is still empty tells nothing: volumes are often handed over with another owner. Root
    would take even that from its owner.
    """
    try:
        ours = [path for path in folder.iterdir() if path.name in _WRITTEN]
        owners = {path.lstat().st_uid for path in ours} or ({folder.stat().st_uid} if user == 0 else {user})
    except OSError as error:
        owners = {user}
        if isinstance(error, PermissionError):  # whoever may not even look is not who has made it
            with suppress(OSError):
                owners = {folder.stat().st_uid}
    if user in owners:
        return []
    owner = min(owners)
    with suppress(KeyError):
        who = pwd.getpwuid(owner).pw_name
        return [f"{name}: {folder} belongs to the user {who}; run this as that user: sudo -u {who} outkeep …"]
    return [f"{name}: {folder} belongs to the user with number {owner}; run this as that user"]
