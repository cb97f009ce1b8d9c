"""Files of ours that came back to us: the input of a follow-up is a link to what is stored already."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from app.core.errors import Permanent
from app.core.links import LinkKeys, linked_object
from app.core.names import MANIFEST_NAME
from app.storage.store import Storage
from workers.keep.fetch import Fetched
from workers.keep.spill import spilled


@dataclass(frozen=True)
class OwnFiles:
    """`base_url` is what our links begin with, `folder` for copies; `disk_floor` as `floor_of` has it."""

    storage: Storage
    base_url: str
    keys: LinkKeys
    folder: Path
    disk_floor: int | None
    clock: Callable[[], datetime]

    def name_of(self, url: str) -> str | None:
        """The object to which one of our links leads; None for any other URL, and for a link that is over."""
        return linked_object(url, self.base_url, self.keys, now=self.clock().timestamp())

    async def copy(self, name: str, url: str) -> Fetched:
        """A copy of an object, as if it had been downloaded from `url`.

        Raises `Permanent` (`not_found`), and what the storage and `spilled` raise.
        """
        stored = await asyncio.to_thread(self.storage.head, name)
        if stored is None:
            raise Permanent("not_found", f"{name} is not in the storage any more")
        async with spilled(self.folder, floor=self.disk_floor, expected=stored.size) as spill:
            async for piece in self.storage.stream(name, 0, stored.size):
                await spill.write(piece)
        folder, _, file = name.rpartition("/")
        encodings = await asyncio.to_thread(self.storage.encodings, f"{folder}/{MANIFEST_NAME}")
        return Fetched(
            spill.path, spill.size, spill.sha256, spill.head, None, url, encoding=encodings.get(file)
        )
