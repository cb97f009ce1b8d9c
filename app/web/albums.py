"""Albums: the page that a link shows to whoever has it, and the pages on which albums are made and revoked.

The link is all that a visitor needs and has: no session, no word of who keeps what here. Links to the files
are good for two hours at most, so that revoking an album soon ends them, too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from app.core.errors import OutkeepError, Rejected
from app.core.links import file_path, sign_path
from app.core.manifest import KeptFile, Manifest
from app.core.names import ID, Kind, manifest_name, object_name
from app.maintain.albums import LONGEST, MOST, USUAL_DAYS, Album, Albums
from app.web import models, views
from app.web.dashboard import KINDS, Dashboard, refusal
from app.web.rendering import page, read_form
from app.web.signing import ALBUM, album_signer, album_url

LINKS_LAST = 7200
"""Seconds for which the links to the files of an album are good, at most."""

LARGEST_MANIFEST = 1 << 20
"""Bytes of one that is read for a visitor; what is larger is left out."""

MOST_TEXTS = 50
LARGEST_FORM = 64 << 10

_HOUR = 3600


@dataclass(frozen=True)
class AlbumPages:
    """`dashboard` knows who may make them, and what there is."""

    dashboard: Dashboard
    albums: Albums
    secret_keys: Sequence[bytes] = field(repr=False)

    def routes(self) -> list[Route]:
        """All of them."""
        guarded = self.dashboard.guarded
        return [
            Route(f"{ALBUM}/{{signed}}", self.show, methods=["GET"]),
            Route("/albums", guarded(self.list), methods=["GET"]),
            Route("/albums", guarded(self.make), methods=["POST"]),
            Route("/albums/{id}/revoke", guarded(self.revoke), methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        """The album, to whoever has the link."""
        library = self.dashboard.library
        found = album_signer(self.secret_keys).unseal(request.path_params["signed"])
        until = float(found.get("until", 0))
        try:
            shown = []
            if until > library.clock().timestamp():
                read = partial(self._read, str(found["album"]), until, prompts=bool(found.get("prompts")))
                shown = await library.run(read)
        except (OutkeepError, RedisError):
            return refusal(request, 503, "This cannot be shown right now; try again in a minute.")
        if not shown:
            return page(request, "album.html", status=404, shown=[], until=None, now=library.clock())
        return page(
            request,
            "album.html",
            storage_origin=await self.dashboard.storage_origin(),
            shown=shown,
            until=datetime.fromtimestamp(until, UTC),
            now=library.clock(),
        )

    def _read(self, album_id: str, until: float, *, prompts: bool) -> list[dict[str, Any]]:
        storage, found, texts = self.dashboard.library.storage, [], MOST_TEXTS
        for kind, prediction_id in self.albums.members(album_id):
            stored = storage.head(manifest_name(kind, prediction_id))
            if stored is None or stored.size > LARGEST_MANIFEST:
                continue
            manifest = storage.read_manifest(kind, prediction_id)
            if manifest is None:
                continue
            files = list(self._files(manifest, until, texts))
            texts -= sum(file.text is not None for file in files)
            if files:
                prompt = _prompt(manifest) if prompts else None
                found.append({"files": files, "prompt": prompt})
        return found

    def _files(self, manifest: Manifest, until: float, texts: int) -> Iterator[views.Shown]:
        for file in manifest.kept:
            if not file.is_input and file.name:
                shown = self._shown(manifest, file, until, may_read=texts > 0)
                texts -= shown.text is not None
                yield shown

    def _shown(self, manifest: Manifest, file: KeptFile, until: float, *, may_read: bool) -> views.Shown:
        library, name, size = self.dashboard.library, str(file.name), file.size or 0
        ref = (manifest.prediction.kind, manifest.prediction.id)
        # The same for an hour, so that browsers may keep what they have fetched.
        hour = int(library.clock().timestamp()) // _HOUR * _HOUR
        expires = min(int(until), hour + LINKS_LAST)
        text = None
        if may_read and views.shown_as(name, file.encoding) == "text" and size <= views.LONGEST_TEXT:
            text = (library.storage.get(object_name(*ref, name)) or b"").decode(errors="replace")
        described = models.File(
            name=name,
            pointer=file.pointer,
            media_type=file.media_type,
            size=size,
            sha256=file.sha256 or "",
            source=None,
            encoding=file.encoding,
            is_input=False,
            url=sign_path(file_path(*ref, name), expires, library.links),
        )
        return views.shown(described, text)

    async def list(self, request: Request) -> Response:
        """Those that there are, and how to make one."""
        return await self._page(request, await self._all(), [])

    async def make(self, request: Request) -> Response:
        """Ask for how long, or make it and show its link."""
        form = await read_form(request, largest=LARGEST_FORM)
        refs = list(_chosen(form.getlist("ref")))
        if form.get("sure") != "yes":
            return await self._page(request, await self._all(), refs)
        library, prompts = self.dashboard.library, form.get("prompts") == "true"
        days = form.get("days", "")
        if not (days.isascii() and days.isdigit() and 0 < int(days) <= LONGEST.days):
            raise Rejected("bad_form", f"An album lasts for 1 to {LONGEST.days} days.")
        now = library.clock()
        made = await library.run(
            partial(self.albums.make, refs, until=now + timedelta(days=int(days)), now=now)
        )
        url = album_url(library.base_url, self.secret_keys, made.id, until=made.until, prompts=prompts)
        return await self._page(request, await self._all(), [], made=made, url=url)

    async def revoke(self, request: Request) -> Response:
        """End one now."""
        await self.dashboard.library.run(partial(self.albums.revoke, request.path_params["id"]))
        return RedirectResponse("/albums", 303)

    async def _all(self) -> Sequence[Album]:
        library = self.dashboard.library
        return await library.run(partial(self.albums.all, library.clock()))

    async def _page(
        self, request: Request, albums: Sequence[Album], refs: Sequence[tuple[Kind, str]], **made: Any
    ) -> Response:
        values = {"made": None, "url": None, "usual": USUAL_DAYS, "longest": LONGEST.days, **made}
        return await self.dashboard.page(request, "albums.html", albums=albums, refs=refs, **values)


def _prompt(manifest: Manifest) -> str | None:
    given = manifest.prediction.raw.get("input")
    found = given.get("prompt") if isinstance(given, dict) else None
    return found if isinstance(found, str) else None


def _chosen(texts: Sequence[str]) -> Iterator[tuple[Kind, str]]:
    if not 0 < len(texts) <= MOST:
        raise Rejected("bad_form", f"Choose 1 to {MOST} predictions.")
    for text in dict.fromkeys(texts):
        folder, _, prediction_id = text.partition("/")
        if folder not in KINDS or not ID.fullmatch(prediction_id):
            raise Rejected("bad_form", "What was chosen is no prediction.")
        yield KINDS[folder], prediction_id
