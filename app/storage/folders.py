"""What storage holds of each prediction, read from one listing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from app.core.names import ID, Kind, manifest_name, split_outcome_name
from app.storage.store import Storage, Stored

_PARTS = 3


@dataclass(frozen=True)
class Folder:
    """The objects of one prediction or training by their full names."""

    kind: Kind
    id: str
    objects: Mapping[str, Stored]

    @property
    def place(self) -> tuple[Kind, str]:
        """What tells it from all others."""
        return self.kind, self.id

    @property
    def manifest(self) -> Stored | None:
        """What the listing says of the manifest; None before anything is committed."""
        return self.objects.get(manifest_name(*self.place))

    @property
    def outcomes(self) -> Mapping[str, str]:
        """Handler → name of the object that says how its delivery ended."""
        found = {split_outcome_name(name.rpartition("/")[2]): name for name in self.objects}
        return {handler: name for handler, name in found.items() if handler is not None}


def folders(storage: Storage, kind: Kind) -> Iterator[Folder]:
    """Everything of one kind, in the order of the store; raises `Transient`."""
    # A prefix is a range of every ordered listing, and a local folder is walked whole.
    for folder, found in groupby(storage.objects(kind.folder), key=lambda one: one[0].rpartition("/")[0]):
        parts = folder.split("/")
        if len(parts) == _PARTS - 1 and ID.fullmatch(parts[1]):
            yield Folder(kind, parts[1], dict(found))
