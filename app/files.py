"""Stored files over HTTP: by a link that we signed or with the admin token, never running in our origin."""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from app.bearer import bearer, carries
from app.core import media
from app.core.errors import Rejected, Transient
from app.core.links import LinkKeys, check_path, file_path
from app.core.names import ID, TEXT_NAME, Kind, object_name
from app.core.ranges import parse_range
from app.storage import Storage, Stored

THREADS = 16
"""Look-ups in storage at the same time."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", re.ASCII)
_KINDS = {kind.folder: kind for kind in Kind}


@dataclass(frozen=True)
class Files:
    """What `GET /files/{predictions,trainings}/{id}/{name}` works with."""

    storage: Storage
    keys: LinkKeys
    admin_token: SecretStr | None
    clock: Callable[[], datetime]
    # Their own: should storage hang, it must hang for nobody else.
    _threads: ThreadPoolExecutor = field(
        init=False, repr=False, default_factory=partial(ThreadPoolExecutor, THREADS, "files")
    )

    async def serve(self, request: Request) -> Response:
        """Answer one request, in full or by range."""
        try:
            kind, prediction_id, name = _place(request)
            self._admit(request, file_path(kind, prediction_id, name))
            wanted = object_name(kind, prediction_id, name)
            stored = await asyncio.get_running_loop().run_in_executor(self._threads, self._find, wanted)
            return self._answer(request, wanted, stored)
        except Rejected as error:
            return JSONResponse({"error": error.code, "message": error.message}, status_code=error.status)
        except Transient as error:
            content = {"error": error.code, "message": error.message}
            return JSONResponse(content, status_code=503, headers={"retry-after": "5"})

    def _find(self, name: str) -> Stored:
        stored = self.storage.head(name)
        if stored is None:
            raise Rejected("not_found", "no such file is stored", status=404)
        return stored

    def _admit(self, request: Request, path: str) -> None:
        if carries(request, self.admin_token):
            return
        if self.admin_token is not None and bearer(request) is not None:
            raise Rejected("token_refused", "the token is not the admin token", status=401)
        query = request.query_params
        if "signature" not in query or "expires" not in query:
            raise Rejected("link_refused", "a signed link or the admin token is needed", status=403)
        check_path(path, query["expires"], query["signature"], self.keys, now=self.clock().timestamp())

    def _answer(self, request: Request, name: str, stored: Stored) -> Response:
        headers = _headers(name, stored)
        if stored.etag is not None and _has(request.headers.get("if-none-match", ""), stored.etag):
            return Response(status_code=304, headers=headers)
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
        return StreamingResponse(self.storage.stream(name, start, end), status_code=status, headers=headers)


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
    file_name = name.rpartition("/")[2]
    extension = file_name.rpartition(".")[2]
    # Of the text that we wrote, and of JSON as such, it is known; a model's text may be in any.
    charset = "; charset=utf-8" if file_name == TEXT_NAME or extension == "json" else ""
    headers = {
        "content-type": media.media_type(extension) + charset,
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=3600",
        # A model's output is somebody else's code: it must not run in our origin whatever it says it is.
        "content-security-policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
        "cross-origin-resource-policy": "cross-origin",
        "last-modified": stored.changed_at.strftime("%a, %d %b %Y %H:%M:%S GMT"),
    }
    if stored.etag is not None:
        headers["etag"] = stored.etag
    if not media.is_inline_safe(extension):
        headers["content-disposition"] = f'attachment; filename="{file_name}"'
    return headers
