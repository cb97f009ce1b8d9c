"""The HTTP routes of the simulator: the API behind a token, the file host without one."""

import asyncio
import json
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.errors import Rejected
from app.core.names import Kind
from app.core.presentation import parse_range
from app.simulator import ledger as stream
from app.simulator import models, state
from app.simulator import models as catalogue
from app.simulator.files import FOLDER, FileHost, Uploads, read_upload
from app.simulator.ledger import Entry, Ledger
from app.simulator.orders import (
    Counted,
    NeedsToken,
    Traffic,
    read_filter,
    read_order,
    read_wait,
    refuse,
    refuse_route,
)
from app.simulator.webhooks import Sender

PAGE_SIZE = 100

_COLLECTIONS = frozenset((
    "account", "deployments", "files", "models", "predictions", "streams", "trainings", "webhooks",
))  # fmt: skip

Endpoint = Callable[[Request], Any]
Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Backend:
    """What the routes work on; it stands in `app.state.backend` while the server runs."""

    base_url: str
    sender: Sender
    ledger: Ledger
    files: FileHost
    uploads: Uploads
    reticent: bool
    """Whether answers lack what many recorded ones lack."""


class Versioned:
    """Takes a path without `/v1` for the one with it: clients 2.x expect `/v1` in their base URL."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        path = scope.get("path", "")
        if path.removeprefix("/").partition("/")[0] in _COLLECTIONS:
            scope = {**scope, "path": f"/v1{path}", "raw_path": b"/v1" + scope["raw_path"]}
        await self._app(scope, receive, send)


def create_app(token: str, traffic: Traffic, lifespan: Lifespan) -> Starlette:
    """The application; `lifespan` must put a `Backend` into `app.state.backend`."""
    doors = [Middleware(Counted, traffic=traffic), Middleware(NeedsToken, token=token)]
    api = Mount("/v1", routes=_api_routes(), middleware=doors)
    hosted = Route(f"/{FOLDER}/{{identity}}/{{name:path}}", _serve_file)
    return Starlette(
        routes=[api, hosted],
        middleware=[Middleware(Versioned)],
        lifespan=lifespan,
        exception_handlers={Rejected: refuse, HTTPException: refuse_route},
    )


def _api_routes() -> list[Route]:
    routes = [
        Route("/account", _account),
        Route("/predictions", _create_from_version, methods=["POST"]),
        Route("/models", _list_models),
        Route("/models/{owner}/{name}", _show_model),
        Route("/models/{owner}/{name}/versions", _list_versions),
        Route("/models/{owner}/{name}/versions/{version}", _show_version),
        Route("/models/{owner}/{name}/predictions", _create_from_model, methods=["POST"]),
        Route("/deployments", _list_deployments),
        Route("/deployments/{owner}/{name}", _show_deployment),
        Route("/deployments/{owner}/{name}/predictions", _create_from_deployment, methods=["POST"]),
        Route("/models/{owner}/{name}/versions/{version}/trainings", _create_training, methods=["POST"]),
        Route("/webhooks/default/secret", _show_secret),
        Route("/files", _list_uploads),
        Route("/files", _upload, methods=["POST"]),
        Route("/files/{identity}", _show_upload),
        Route("/files/{identity}", _remove_upload, methods=["DELETE"]),
        Route("/files/{identity}/download", _serve_upload),
        Route("/streams/{identity}", _stream),
    ]
    for kind in Kind:
        routes += [
            Route(f"/{kind.folder}", _lists(kind)),
            Route(f"/{kind.folder}/{{identity}}", _shows(kind)),
            Route(f"/{kind.folder}/{{identity}}/cancel", _cancels(kind), methods=["POST"]),
        ]
    return routes


def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


async def _read_json(request: Request) -> object:
    try:
        body: object = await request.json()
        # NaN and lone surrogates pass Python's parser, and then nothing can be answered.
        json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise Rejected("json", "The body must be JSON.", status=422) from None
    return body


def _named(request: Request) -> str:
    return f"{request.path_params['owner']}/{request.path_params['name']}"


async def _create(
    request: Request, kind: Kind, *, model: str | None = None, version: str | None = None
) -> Response:
    after = request.headers.get("cancel-after")
    order = read_order(kind, await _read_json(request), model=model, version=version, cancel_after=after)
    entry = _backend(request).ledger.create(order)
    return JSONResponse(await _awaited(entry, read_wait(request.headers.get("prefer", ""))), 201)


async def _awaited(entry: Entry, seconds: int | None) -> state.Object:
    """The object once it ended; when it did not in time, as it was created: Replicate does the same."""
    as_created = entry.object
    if seconds is None:
        return as_created
    try:
        async with asyncio.timeout(seconds):
            await entry.ended.wait()
    except TimeoutError:
        return as_created
    return entry.object


async def _create_from_version(request: Request) -> Response:
    return await _create(request, Kind.PREDICTION)


async def _create_from_model(request: Request) -> Response:
    name = _named(request)
    if not models.model_named(name).official:
        raise Rejected("not_found", "The requested resource could not be found.", status=404)
    # The version of official models is recorded as this word.
    return await _create(request, Kind.PREDICTION, model=name, version="hidden")


async def _create_from_deployment(request: Request) -> Response:
    name = _named(request)
    return await _create(request, Kind.PREDICTION, model=name, version=f"dp-{models.version_id(name)[:32]}")


async def _create_training(request: Request) -> Response:
    version = request.path_params["version"]
    return await _create(request, Kind.TRAINING, model=_named(request), version=version)


def _lists(kind: Kind) -> Endpoint:
    async def show_page(request: Request) -> Response:
        backend, query = _backend(request), request.query_params
        objects = backend.ledger.newest_first(kind, read_filter(query))
        results, cursor = state.page(objects, query.get("cursor"), PAGE_SIZE)
        following = urlencode({**query, "cursor": cursor})
        return JSONResponse(
            {
                "next": f"{backend.base_url}/v1/{kind.folder}?{following}" if cursor else None,
                "previous": None,
                "results": [state.list_item(item, reticent=backend.reticent) for item in results],
            }
        )

    return show_page


def _shows(kind: Kind) -> Endpoint:
    async def show(request: Request) -> Response:
        backend = _backend(request)
        found = backend.ledger.find(kind, request.path_params["identity"]).object
        return JSONResponse(state.shown(found, reticent=backend.reticent))

    return show


def _cancels(kind: Kind) -> Endpoint:
    async def cancel(request: Request) -> Response:
        return JSONResponse(_backend(request).ledger.cancel(kind, request.path_params["identity"]).object)

    return cancel


async def _account(_request: Request) -> Response:
    return JSONResponse({"type": "user", "username": "simulator", "name": "Simulator", "github_url": None})


async def _show_secret(request: Request) -> Response:
    return JSONResponse({"key": _backend(request).sender.secret})


async def _show_model(request: Request) -> Response:
    return JSONResponse(catalogue.describe_model(_named(request), _backend(request).base_url))


async def _show_version(request: Request) -> Response:
    return JSONResponse(catalogue.describe_version(_named(request), request.path_params["version"]))


def _whole(items: Iterable[state.Object]) -> Response:
    """A list of one page."""
    return JSONResponse({"next": None, "previous": None, "results": list(items)})


async def _list_models(request: Request) -> Response:
    return _whole(catalogue.describe_model(name, _backend(request).base_url) for name in models.MODELS)


async def _list_versions(request: Request) -> Response:
    return _whole([catalogue.describe_version(_named(request), models.version_id(_named(request)))])


async def _list_deployments(_request: Request) -> Response:
    return _whole([catalogue.describe_deployment(name) for name in models.MODELS])


async def _show_deployment(request: Request) -> Response:
    return JSONResponse(catalogue.describe_deployment(_named(request)))


async def _upload(request: Request) -> Response:
    upload = read_upload(request.headers.get("content-type", ""), await request.body())
    return JSONResponse(_backend(request).uploads.add(upload, datetime.now(UTC)), 201)


async def _list_uploads(request: Request) -> Response:
    return _whole(_backend(request).uploads.newest_first())


async def _show_upload(request: Request) -> Response:
    described, _ = _backend(request).uploads.find(request.path_params["identity"])
    return JSONResponse(described)


async def _remove_upload(request: Request) -> Response:
    _backend(request).uploads.remove(request.path_params["identity"])
    return Response(status_code=204)


async def _serve_upload(request: Request) -> Response:
    # The real one asks for owner, expiry and a signature; what it says to a token alone is not known.
    _, upload = _backend(request).uploads.find(request.path_params["identity"])
    return Response(upload.content, media_type=upload.content_type)


async def _stream(request: Request) -> Response:
    entry = _backend(request).ledger.find(Kind.PREDICTION, request.path_params["identity"])
    headers = {"cache-control": "no-store"}
    return StreamingResponse(stream.events(entry), media_type="text/event-stream", headers=headers)


async def _serve_file(request: Request) -> Response:
    found = _backend(request).files.find(request.path_params["identity"], request.path_params["name"])
    headers = {
        "accept-ranges": "bytes",
        "cache-control": "public,max-age=3600",
        "content-type": found.content_type,
        "etag": found.etag,
    }
    part = parse_range(request.headers.get("range"), len(found.content))
    if request.method == "GET":
        found.downloads += 1
    if part is None:
        return Response(found.content, headers=headers)
    start, end = part
    headers["content-range"] = f"bytes {start}-{end - 1}/{len(found.content)}"
    return Response(found.content[start:end], 206, headers)
