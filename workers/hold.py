"""Downloads that wait on our disk while the storage fails, since their hour may pass before it is mended."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from app.core.names import Kind
from workers.fetch import Fetched
from workers.spill import HEAD_BYTES

_PREFIX = "held"
_PARTS = 5


def hold(fetched: Fetched, folder: Path, kind: Kind, prediction_id: str, number: int) -> None:
    """Put a temporary file where `held` finds it; best effort, it never raises.

    `folder` outlives the process, unlike the one for what is being downloaded. The name holds the hash: after
    a power cut the file may not have all its bytes.
    """
    with suppress(OSError):
        fetched.path.rename(folder / _name(kind, prediction_id, number, fetched.sha256))


def held(folder: Path, kind: Kind, prediction_id: str, number: int) -> Fetched | None:
    """The download that an earlier run on this host could not store, if all of it is there."""
    for path in folder.glob(_name(kind, prediction_id, number, "*")):
        with suppress(OSError):
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = os.fstat(file.fileno()).st_size
            if path.name == _name(kind, prediction_id, number, digest):
                return Fetched(path, size, digest, head, None, "")
            path.unlink()
    return None


def held_place(name: str) -> tuple[Kind, str] | None:
    """The prediction that a held file belongs to; None for any other name."""
    parts = name.split(".")
    if len(parts) != _PARTS or parts[0] != _PREFIX or parts[1] not in list(Kind):
        return None
    return Kind(parts[1]), parts[2]


def _name(kind: Kind, prediction_id: str, number: int, digest: str) -> str:
    # Dots, because an id may contain anything else that separates.
    return f"{_PREFIX}.{kind}.{prediction_id}.{number}.{digest}"
