"""Stored files over HTTP: by a link that we signed or with the admin token, never running in our origin."""

import asyncio
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from urllib.parse import quote

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Send

from app.core.errors import OutkeepError, Rejected, Transient
from app.core.links import LinkKeys, check_path, file_path
from app.core.names import ID, Kind, manifest_name, object_name
from app.core.presentation import parse_range, presentation
from app.core.secret import SecretStr
from app.receive.headers import bearer, carries
from app.storage.store import Storage, Stored

THREADS = 16
"""Look-ups in storage at the same time."""

MOST_KNOWN = 1000
"""Manifests of which it is remembered how their files are encoded."""

LARGE = 1 << 20
"""Bytes of a manifest of which one at a time is in memory: it takes many times as much there."""

LONGEST_QUERY = 8 << 10
"""Bytes of the query of a link, with what others have added to it; a longer one is not taken apart."""

log = logging.getLogger("outkeep.files")

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", re.ASCII)
_FOR_EVERY_PAGE = {
    "access-control-allow-origin": "*",
    "access-control-expose-headers": (
        "accept-ranges, content-disposition, content-length, content-range, etag"
    ),
}
_PREFLIGHT = {
    "access-control-allow-methods": "GET, HEAD",
    "access-control-allow-headers": "cache-control, if-modified-since, if-none-match, if-range, range",
    "access-control-max-age": "86400",
}
"""What a browser asks before a request with headers such as `Range`."""

_KINDS = {kind.folder: kind for kind in Kind}


@dataclass(frozen=True)
class Files:
    """What `GET /files/{predictions,trainings}/{id}/{name}` works with."""

    storage: Storage
    public_url: str | None
    """Where a CDN serves the objects of a bucket to everyone; None: the store signs links, or we serve."""
    base_url: str
    """What our own links start with."""
    keys: LinkKeys
    admin_token: SecretStr | None
    clock: Callable[[], datetime]
    # Their own: should storage hang, it must hang for nobody else.
    _threads: ThreadPoolExecutor = field(
        init=False, repr=False, default_factory=partial(ThreadPoolExecutor, THREADS, "files")
    )

    _encodings: dict[str, tuple[Stored, Mapping[str, str]]] = field(
        init=False, repr=False, default_factory=dict
    )
    _reading: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    async def serve(self, request: Request) -> Response:
        """Answer one request, in full or by range; scripts of any page may use a signed link."""
        answer = await self._serve(request)
        if "signature" in _query(request) and "authorization" not in request.headers:
            answer.headers.update(_FOR_EVERY_PAGE)
        return answer

    async def _serve(self, request: Request) -> Response:
        try:
            kind, prediction_id, name = _place(request)
            self._admit(request, file_path(kind, prediction_id, name))
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=_PREFLIGHT)
            wanted = object_name(kind, prediction_id, name)
            loop = asyncio.get_running_loop()
            stored = await loop.run_in_executor(self._threads, self._find, wanted)
            place = await loop.run_in_executor(self._threads, self._elsewhere, request, wanted)
            if place is not None:
                return await self._answer(request, wanted, stored, place, None)
            encoding = await loop.run_in_executor(self._threads, self._encoding, kind, prediction_id, name)
            return await self._answer(request, wanted, stored, None, encoding)
        except Rejected as error:
            return JSONResponse({"error": error.code, "message": error.message}, status_code=error.status)
        except Transient as error:
            log.warning(
                "a stored file could not be served; it is asked for again",
                extra={"object": request.url.path, "code": error.code, "error": error.message},
            )
            content = {"error": error.code, "message": error.message}
            return JSONResponse(content, status_code=503, headers={"retry-after": "5"})

    def _find(self, name: str) -> Stored:
        stored = self.storage.head(name)
        if stored is None:
            if self.storage.folder is None:
                self.storage.get(name)  # only the answer to this tells a bucket that is gone
            raise Rejected("not_found", "no such file is stored", status=404)
        return stored

    def _encoding(self, kind: Kind, prediction_id: str, name: str) -> str | None:
        """The `Content-Encoding` that a file came with; few do, and only the manifest knows.

        That may be large, and is read again only when it is another one.
        """
        place = manifest_name(kind, prediction_id)
        manifest = self.storage.head(place)
        if manifest is None:
            return None
        with self._reading if manifest.size > LARGE else nullcontext():
            read, encodings = self._encodings.get(place, (None, {}))
            if read != manifest:
                encodings = self.storage.encodings(place)
                for oldest in list(self._encodings)[: 1 - MOST_KNOWN]:
                    self._encodings.pop(oldest, None)
                self._encodings[place] = (manifest, encodings)
        return encodings.get(name)

    def _admit(self, request: Request, path: str) -> None:
        if carries(request, self.admin_token):
            return
        if self.admin_token is not None and bearer(request) is not None:
            raise Rejected("token_refused", "the token is not the admin token", status=401)
        query = _query(request)
        if "signature" not in query or "expires" not in query:
            raise Rejected("link_refused", "a signed link or the admin token is needed", status=403)
        check_path(path, query["expires"], query["signature"], self.keys, now=self.clock().timestamp())

    def _elsewhere(self, request: Request, name: str) -> str | None:
        """The URL under which the store, or a CDN before it, serves the object; None: we do.

        A client that shows its token would show it there too, and who came by https is not led down to http.
        Nor is a script of another page, which could read nothing there without rules of the bucket's own.
        """
        here = request.method != "GET" or "authorization" in request.headers or "origin" in request.headers
        if self.storage.folder is not None or here:
            return None
        if self.public_url is not None:
            return f"{self.public_url}/{quote(name)}"
        link = self.storage.link(name)
        if link is not None and self.base_url.startswith("https:") and not link.startswith("https:"):
            return None
        return link

    async def _answer(
        self, request: Request, name: str, stored: Stored, elsewhere: str | None, encoding: str | None
    ) -> Response:
        headers = _headers(name, stored) | ({"content-encoding": encoding} if encoding else {})
        if stored.etag is not None and _has(request.headers.get("if-none-match", ""), stored.etag):
            return Response(status_code=304, headers=headers)
        if elsewhere is not None:
            # The place is a permission in itself, and soon over: nobody may keep it.
            return Response(status_code=307, headers={"location": elsewhere, "cache-control": "no-store"})
        wanted = request.headers.get("range")
        if request.headers.get("if-range", stored.etag) != stored.etag:
            wanted = None
        try:
            part = parse_range(wanted, stored.size)
        except Rejected as error:
            return Response(status_code=error.status, headers={"content-range": f"bytes */{stored.size}"})
        start, end = part or (0, stored.size)
        headers["content-length"] = str(end - start)
        if part is not None:
            headers["content-range"] = f"bytes {start}-{end - 1}/{stored.size}"
        status = 206 if part else 200
        if request.method == "HEAD" or start == end:
            return Response(status_code=status, headers=headers)
        pieces = self.storage.stream(name, start, end, size=stored.size)
        first = await anext(pieces)  # before the head is sent: a store that gives nothing is no 200
        return Streamed(_joined(first, pieces), status_code=status, headers=headers)


class Streamed(StreamingResponse):
    """An answer whose connection is closed early when the storage fails midway: its length says so then."""

    async def stream_response(self, send: Send) -> None:
        """Send it piece by piece."""
        try:
            await super().stream_response(send)
        except OutkeepError as error:
            log.warning(
                "the storage failed while a file was served; its reader has to ask again",
                extra={"code": error.code, "error": error.message},
            )


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _query(request: Request) -> QueryParams:
    return request.query_params if len(request.scope["query_string"]) <= LONGEST_QUERY else QueryParams()


def _place(request: Request) -> tuple[Kind, str, str]:
    parts = request.path_params
    kind = _KINDS.get(parts["folder"])
    if kind is None or not ID.fullmatch(parts["id"]) or not _NAME.fullmatch(parts["name"]):
        raise Rejected("not_found", "no such file is stored", status=404)
    return kind, parts["id"], parts["name"]


def _has(listed: str, etag: str) -> bool:
    """Whether an `If-None-Match` covers `etag`; weak comparison, as the RFC wants it for that header."""
    return listed.strip() == "*" or etag in {entry.strip().removeprefix("W/") for entry in listed.split(",")}


def _headers(name: str, stored: Stored) -> dict[str, str]:
    headers = {
        **{key.lower(): value for key, value in presentation(name).items()},
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=3600",
        # A model's output is somebody else's code: it must not run in our origin whatever it says it is.
        "content-security-policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
        "cross-origin-resource-policy": "cross-origin",
        "last-modified": stored.changed_at.strftime("%a, %d %b %Y %H:%M:%S GMT"),
    }
    if stored.etag is not None:
        headers["etag"] = stored.etag
    return headers
