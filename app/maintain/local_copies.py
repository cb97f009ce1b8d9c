"""What this host alone holds of a prediction: downloads that wait for the storage, deliveries for Redis."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.core.names import Kind, held_place, is_spooled


@dataclass(frozen=True)
class LocalCopies:
    """The folders of this host. Methods raise `OSError`."""

    temporary: Path
    spool: Path

    def of(self, kind: Kind, prediction_id: str) -> list[Path]:
        """The files that hold something of a prediction."""
        place = (kind, prediction_id)
        downloads = (path for path in _files(self.temporary) if held_place(path.name) == place)
        deliveries = (path for path in _files(self.spool) if is_spooled(path.name, kind, prediction_id))
        return sorted([*downloads, *deliveries])


def _files(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except FileNotFoundError:
        return
