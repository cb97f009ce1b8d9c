"""`GET /thumbs/{predictions,trainings}/{id}/{name}`: small pictures of stored ones, made once, for the pages.

They are derived, and lie in `<data>/thumbs`, named after the prediction and the SHA-256 of the content. An
empty file says that there is none: a bomb is tried once. The folder is bounded; what was shown longest ago
goes. Nothing a picture does reaches this process: another program reads it (`thumbnail.py`).
"""

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.accept.changes import REMOVED, Change
from app.core.errors import OutkeepError, Rejected
from app.core.names import ID, THUMBS_OF_ANY, Kind, manifest_name, object_name, thumb_name
from app.disk import lack_of_room, make_folder
from app.storage.store import Storage, Stored
from app.web.session import Sessions
from app.web.thumbnail import MOST_BYTES

CHILDREN = 2
"""Thumbnails that are made at the same time."""

MOST_WAITING = 32
"""Requests for such ones that wait; more get the placeholder at once."""

ROOM = 256 << 20
"""Bytes of all thumbnails."""

TIMEOUT = 20.0
MOST_KNOWN = 1000
LARGE = 1 << 20
"""Manifests whose files are remembered, and bytes of one of which one at a time is in memory."""

PLACEHOLDER: Final = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-30 -30 84 84" fill="none" stroke="#8a8f98">'
    b'<path d="M7 3.5h7l4 4v13H7zM14 3.5v4h4"/></svg>'
)
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif")
_KINDS = {kind.folder: kind for kind in Kind}
_DIGEST = re.compile("[0-9a-f]{64}", re.ASCII)
_PROGRAM = Path(__file__).with_name("thumbnail.py")


@dataclass
class Thumbs:
    """Answers requests with thumbnails, and makes those that are missing."""

    storage: Storage
    root: Path
    sessions: Sessions
    disk_floor: int | None
    room: int = ROOM
    waiting: int = MOST_WAITING
    # Of their own: should storage hang or a decoder be slow, nothing else waits.
    _looking: ThreadPoolExecutor = field(
        init=False, repr=False, default_factory=partial(ThreadPoolExecutor, 4, "thumbs")
    )
    _making: ThreadPoolExecutor = field(
        init=False, repr=False, default_factory=partial(ThreadPoolExecutor, CHILDREN, "thumbnails")
    )
    _begun: dict[Path, "asyncio.Future[bytes]"] = field(init=False, repr=False, default_factory=dict)
    _known: dict[str, tuple[Stored, Mapping[str, str]]] = field(init=False, repr=False, default_factory=dict)
    _reading: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)
    _tidying: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)
    _size: int | None = field(init=False, repr=False, default=None)
    """Bytes of the folder as far as we know; None: nobody has looked yet."""
    _running: set["subprocess.Popen[bytes]"] = field(init=False, repr=False, default_factory=set)
    _closed: bool = field(init=False, repr=False, default=False)

    async def serve(self, request: Request) -> Response:
        """The thumbnail, or a placeholder for a file that has none."""
        try:
            self.sessions.require(request)
            loop, name = asyncio.get_running_loop(), request.path_params["name"]
            kind, prediction_id = _place(request)
            digest = await loop.run_in_executor(self._looking, self._digest, kind, prediction_id, name)
            place = self.root / thumb_name(kind, prediction_id, digest)
            if f'"{digest}"' == request.headers.get("if-none-match"):
                return Response(status_code=304, headers=_headers(digest, "image/webp"))
            made = await loop.run_in_executor(self._looking, _found, place)
            if made is None:
                made = await self._made_once(place, kind, prediction_id, name)
        except Rejected as error:
            return JSONResponse({"error": error.code, "message": error.message}, error.status)
        except (OutkeepError, OSError):
            return _placeholder()
        return Response(made, headers=_headers(digest, "image/webp")) if made else _placeholder(digest)

    async def _made_once(self, place: Path, kind: Kind, prediction_id: str, name: str) -> bytes:
        """Make it, unless that is going on already. Raises `OSError` when too many wait."""
        running = self._begun.get(place)
        if running is None:
            if len(self._begun) >= self.waiting + CHILDREN:
                raise BlockingIOError
            work = partial(self._make, place, kind, prediction_id, name)
            running = asyncio.get_running_loop().run_in_executor(self._making, work)
            self._begun[place] = running
            running.add_done_callback(lambda _: self._begun.pop(place))
        return await asyncio.shield(running)

    def _digest(self, kind: Kind, prediction_id: str, name: str) -> str:
        """The SHA-256 of a kept file; raises `Rejected` (404)."""
        place = manifest_name(kind, prediction_id)
        stored = self.storage.head(place)
        read, files = self._known.get(place, (None, {}))
        if stored is not None and read != stored:
            with self._reading:  # each may take many times its size in memory
                manifest = self.storage.read_manifest(kind, prediction_id)
            kept = manifest.kept if manifest else ()
            digests = ((one.name, one.sha256) for one in kept)
            files = {
                name: digest for name, digest in digests if name and digest and _DIGEST.fullmatch(digest)
            }
            for oldest in list(self._known)[: 1 - MOST_KNOWN]:
                self._known.pop(oldest, None)
            self._known[place] = (stored, files)
        if stored is None or name not in files:
            raise Rejected("not_found", "no such file is stored", status=404)
        return files[name]

    def _make(self, place: Path, kind: Kind, prediction_id: str, name: str) -> bytes:
        """The thumbnail, empty where there is none; it is kept unless the prediction is removed meanwhile."""
        wanted = object_name(kind, prediction_id, name)
        made = b"" if not name.endswith(_PICTURES) else self._shrunk(wanted)
        if lack_of_room(self.root.parent, len(made), self.disk_floor) is None:
            make_folder(self.root, mode=0o700)
            draft = place.with_name(f"{place.name}.{threading.get_ident()}")
            draft.touch(0o600)
            draft.write_bytes(made)
            draft.rename(place)
            if self.storage.head(wanted) is None:
                self.forget(kind, prediction_id)
            self._tidy(len(made))
        return made

    def _shrunk(self, wanted: str) -> bytes:
        stored = self.storage.head(wanted)
        if stored is None or stored.size > MOST_BYTES:
            return b""
        folder = self.storage.folder
        if folder is None:
            return self._ended(_child(subprocess.PIPE), self.storage.get(wanted))
        with (folder / wanted).open("rb") as file:
            return self._ended(_child(file), None)

    def _ended(self, child: "subprocess.Popen[bytes]", given: bytes | None) -> bytes:
        """What a child has made; raises `TimeoutError` when it was cut off: no fault of the picture."""
        with child:
            self._running.add(child)
            try:
                if self._closed:
                    raise TimeoutError
                made, _ = child.communicate(given, TIMEOUT)
            except subprocess.TimeoutExpired:
                raise TimeoutError from None
            finally:
                self._running.discard(child)
                child.kill()
        if self._closed:
            raise TimeoutError
        return made if child.returncode == 0 else b""

    def forget(self, kind: Kind, prediction_id: str) -> None:
        """Remove the thumbnails of a prediction. Raises `OSError`."""
        for path in self.root.glob(thumb_name(kind, prediction_id, THUMBS_OF_ANY) + "*"):
            path.unlink(missing_ok=True)

    def follow(self, changes: Sequence[Change]) -> None:
        """Forget what was removed."""
        for change in changes:
            if change.what == REMOVED and change.kind is not None and change.id is not None:
                with suppress(OSError):
                    self.forget(change.kind, change.id)

    def close(self) -> None:
        """End the children; whoever waits gets the placeholder."""
        self._closed = True
        for child in list(self._running):
            child.kill()
        self._making.shutdown(cancel_futures=True)
        self._looking.shutdown(wait=False, cancel_futures=True)

    def _tidy(self, size: int) -> None:
        """Make room when there are too many: what was shown longest ago goes first."""
        with self._tidying:
            if self._size is not None and self._size + _taken(size) <= self.room:
                self._size += _taken(size)
                return
            lying = sorted(_lying(self.root))
            self._size = sum(taken for _, taken, _ in lying)
            aim = self.room * 9 // 10 if self._size > self.room else self._size
            for _, taken, path in lying:
                if self._size <= aim:
                    break
                path.unlink(missing_ok=True)
                self._size -= taken


def _child(given: int | IO[bytes]) -> "subprocess.Popen[bytes]":
    # No environment: that of ours holds secrets.
    command = [sys.executable, "-I", str(_PROGRAM)]
    return subprocess.Popen(  # noqa: S603
        command, env={}, cwd="/", stdin=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def _place(request: Request) -> tuple[Kind, str]:
    kind, prediction_id = _KINDS.get(request.path_params["folder"]), request.path_params["id"]
    if kind is None or not ID.fullmatch(prediction_id):
        raise Rejected("not_found", "no such file is stored", status=404)
    return kind, prediction_id


def _lying(root: Path) -> Iterator[tuple[float, int, Path]]:
    for path in root.iterdir():
        with suppress(OSError):
            facts = path.stat()
            yield facts.st_mtime, _taken(facts.st_size), path


def _taken(size: int) -> int:
    """A file takes a block, however small it is."""
    return max(size, 4096)


def _found(place: Path) -> bytes | None:
    """What was made before, and that it was looked at now."""
    try:
        made = place.read_bytes()
        os.utime(place)
    except FileNotFoundError:
        return None
    return made


def _headers(digest: str, media_type: str) -> dict[str, str]:
    return {
        "content-type": media_type,
        "cache-control": "private, max-age=3600",
        "content-security-policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
        "cross-origin-resource-policy": "same-origin",
        "etag": f'"{digest}"',
    }


def _placeholder(digest: str | None = None) -> Response:
    """For now, or with a digest for good."""
    headers = _headers(digest or "", "image/svg+xml")
    if digest is None:
        headers |= {"cache-control": "no-store"}
        del headers["etag"]
    return Response(PLACEHOLDER, headers=headers)
