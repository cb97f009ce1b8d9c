"""Downloads that wait on our disk while the storage fails, since their hour may pass before it is mended."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from app.core.names import Kind, held_digest, held_mark, held_name
from workers.keep.fetch import Fetched
from workers.keep.spill import HEAD_BYTES


def hold(fetched: Fetched, folder: Path, kind: Kind, prediction_id: str, number: int) -> None:
    """Put a temporary file where `held` finds it; best effort, it never raises.

    `folder` outlives the process, unlike the one for what is being downloaded. The name holds the hash: after
    a power cut the file may not have all its bytes.
    """
    with suppress(OSError):
        digest = fetched.sha256 + held_mark(fetched.declared, fetched.encoding)
        fetched.path.rename(folder / held_name(kind, prediction_id, number, digest))


def held(folder: Path, kind: Kind, prediction_id: str, number: int) -> Fetched | None:
    """The download that an earlier run on this host could not store, if all of it is there."""
    for path in folder.glob(held_name(kind, prediction_id, number, "*")):
        with suppress(OSError):
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = os.fstat(file.fileno()).st_size
            wanted, declared, encoding = held_digest(path.name)
            if digest == wanted:
                return Fetched(path, size, digest, head, None, "", declared=declared, encoding=encoding)
            path.unlink()
    return None
