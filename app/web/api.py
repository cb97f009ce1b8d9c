"""The JSON API: one table of routes, from which requests are answered and the description is made."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from redis import Redis
from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from app.core.errors import OutkeepError, Rejected, Transient
from app.core.names import ID, Kind, idempotency_key
from app.maintain.albums import Albums
from app.web import models
from app.web.actions import Actions, moment, unknown
from app.web.catalog import Filters
from app.web.library import Library
from app.web.signing import Signer, album_url
from app.web.stream import Stream

PREFIX = "/api/v1"
LARGEST = 1 << 20
"""Bytes of the body of a request."""

KEY = "idempotency-key"
LONGEST_KEY = 255
KEY_KEPT = 86400
"""Seconds for which the same key gets the same answer."""

PROBLEM = "application/problem+json"
RETRY_AFTER = 2

log = logging.getLogger("outkeep.api")

B = TypeVar("B", bound=BaseModel)


class Refused(Rejected):
    """What is wrong with parameters or keys, by their names."""

    def __init__(self, code: str, message: str, parameters: Sequence[str], *, status: int = 400) -> None:
        super().__init__(code, message, status=status)
        self.parameters = parameters


@dataclass(frozen=True)
class Call:
    """A request that was read and proven."""

    request: Request
    kind: Kind
    query: Any
    body: Any

    @property
    def ref(self) -> tuple[Kind, str]:
        """What the path names; raises `Rejected` (404) for what can be no id."""
        identity = self.named("id")
        return self.kind, identity

    def named(self, name: str) -> str:
        """A part of the path that is an id or a name."""
        text = str(self.request.path_params[name])
        if not ID.fullmatch(text):
            raise Rejected("unknown", "nothing has such a name", status=404)
        return text


_Run = Callable[["Api", Call], Awaitable[BaseModel | Response]]


@dataclass(frozen=True)
class Operation:
    """A row of the table. `answers` are the models that may come with `status`; none: something else does."""

    name: str
    method: str
    path: str
    summary: str
    run: _Run
    answers: Sequence[type[BaseModel]]
    status: int = 200
    query: type[BaseModel] = models.NoQuery
    body: type[BaseModel] | None = None
    errors: Sequence[int] = ()
    """Statuses beside those that every operation may answer with."""


@dataclass(frozen=True)
class Api:
    """What the operations work with. `require` admits a request or raises `Rejected`."""

    library: Library
    actions: Actions
    albums: Albums
    stream: Stream
    outgoing: Callable[[], Any]
    """Makes `app.web.outgoing.Outgoing`."""
    redis: Redis
    require: Callable[[Request], None]
    secret_keys: Sequence[bytes] = field(repr=False)

    def mount(self) -> Mount:
        """All routes; what is no route of ours is a problem, too."""
        routes = [
            Route(path, partial(self._answer, operations=found), methods=list(found))
            for path, found in by_path().items()
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _no_route, Exception: _fault})
        app.router.redirect_slashes = False
        return Mount(PREFIX, app=app)

    async def _answer(
        self, request: Request, *, operations: Mapping[str, tuple[Operation, Kind]]
    ) -> Response:
        operation, kind = operations["GET" if request.method == "HEAD" else request.method]
        try:
            self.require(request)
            query = _query(request, operation.query)
            raw = await _read(request) if request.method == "POST" else b""
            body = _body(raw, operation.body) if operation.body else None
            call = Call(request, kind, query, body)
            key = request.headers.get(KEY)
            if key is None or request.method != "POST":
                return await self._run(operation, call)
            return await self._once(key, raw, operation, call)
        except (OutkeepError, RedisError) as error:
            return problem_of(error)
        except ClientDisconnect:
            return Response(status_code=400)

    async def _run(self, operation: Operation, call: Call) -> Response:
        found = await operation.run(self, call)
        if isinstance(found, Response):
            return found
        status = 200 if isinstance(found, models.BulkPlan) else operation.status
        return Response(found.model_dump_json(), status, media_type="application/json")

    async def _once(self, key: str, raw: bytes, operation: Operation, call: Call) -> Response:
        """Do it once for a key, and give the same answer again; raises `Rejected` for another request."""
        if not 0 < len(key) <= LONGEST_KEY or not key.isascii() or not key.isprintable():
            message = f"Idempotency-Key has 1 to {LONGEST_KEY} printable characters"
            raise Refused("bad_idempotency_key", message, ["Idempotency-Key"])
        path = call.request.url.path
        place = idempotency_key(hashlib.sha256(f"{path}\0{key}".encode()).hexdigest())
        asked = hashlib.sha256(raw).hexdigest()
        known = await asyncio.to_thread(self._claim, place, asked)
        if known is not None:
            return _again(known, asked)
        try:
            answer = await self._run(operation, call)
        except (OutkeepError, RedisError):
            await asyncio.to_thread(self.redis.delete, place)  # nothing was done: it may be tried again
            raise
        fields = {"status": str(answer.status_code), "answer": bytes(answer.body)}
        await asyncio.to_thread(partial(self.redis.hset, place, mapping=cast(Any, fields)))
        return answer

    def _claim(self, place: str, asked: str) -> Mapping[bytes, bytes] | None:
        """None: it is ours to do; else what is known of it."""
        with self.redis.pipeline() as pipeline:
            pipeline.hsetnx(place, "asked", asked)
            pipeline.expire(place, KEY_KEPT)
            pipeline.hgetall(place)
            is_new, _, known = pipeline.execute()
        return None if is_new else cast(Mapping[bytes, bytes], known)

    def cursors(self, query: models.ListQuery, kind: Kind) -> Signer:
        """Cursors are good for the list that they were made for."""
        asked = query.model_dump_json(exclude={"cursor", "limit"})
        digest = hashlib.sha256(f"{kind}{asked}".encode()).digest()
        return Signer(self.secret_keys, b"outkeep cursors v1" + digest)


def _again(known: Mapping[bytes, bytes], asked: str) -> Response:
    if known.get(b"asked") != asked.encode():
        message = "this Idempotency-Key came with another body before"
        raise Refused("idempotency_key_reused", message, ["Idempotency-Key"], status=422)
    if b"answer" not in known:
        message = "the first request with this Idempotency-Key has not ended yet"
        raise Rejected("idempotency_key_busy", message, status=409)
    headers = {"idempotent-replayed": "true"}
    return Response(known[b"answer"], int(known[b"status"]), headers, media_type="application/json")


async def _list(api: Api, call: Call) -> models.Page:
    query: models.ListQuery = call.query
    now = api.library.clock()
    filters = Filters(
        kind=call.kind,
        since=moment(query.since, now) if query.since else None,
        until=moment(query.until, now) if query.until else None,
        **query.model_dump(include={"q", "status", "state", "model", "handler", "lost", "untold", "parent"}),
    )
    signer, before = api.cursors(query, call.kind), None
    if query.cursor is not None:
        before = signer.unseal(query.cursor).get("before")
        if not isinstance(before, int):
            message = "this cursor is not ours, or was made for another list"
            raise Refused("bad_cursor", message, ["cursor"])
    read = partial(api.library.page, filters, query.limit, before)
    results, following = await api.library.run(read)
    return models.Page(
        results=results, next=None if following is None else signer.seal({"before": following})
    )


async def _one(api: Api, call: Call) -> Response:
    found = await api.library.run(partial(api.library.one, *call.ref))
    if found is None:
        raise unknown(*call.ref)
    body = found.model_dump_json().encode()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"etag": etag, "cache-control": "private, no-cache"}
    wanted = call.request.headers.get("if-none-match", "")
    if etag in {one.strip() for one in wanted.split(",")} or wanted.strip() == "*":
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


async def _attempts(api: Api, call: Call) -> models.Attempts:
    kind, identity = call.ref
    found = await api.library.run(partial(api.library.attempts, kind, identity))
    if not found.results and await api.library.run(partial(api.library.one, kind, identity)) is None:
        raise unknown(kind, identity)
    return found


async def _replay(api: Api, call: Call) -> models.ReplayAnswer:
    return await api.library.run(partial(api.actions.replay, *call.ref, call.body.handler))


async def _rerun(api: Api, call: Call) -> models.Rerun:
    kind, identity = call.ref
    return cast(models.Rerun, await api.outgoing().rerun(kind, identity, call.body.input))


async def _remove(api: Api, call: Call) -> models.Removed:
    return await api.library.run(partial(api.actions.remove, *call.ref))


async def _bulk(api: Api, call: Call) -> models.BulkPlan | models.BulkReplay:
    body: models.BulkBody = call.body
    todo = await api.library.run(partial(api.actions.plan, body))
    if body.dry_run:
        return models.BulkPlan(count=len(todo))
    return await api.library.run(partial(api.actions.begin_bulk, todo, failed=body.failed))


async def _bulk_state(api: Api, call: Call) -> models.BulkReplay:
    return await api.library.run(partial(api.actions.bulk, call.named("id")))


async def _cancel_bulk(api: Api, call: Call) -> models.BulkReplay:
    return await api.library.run(partial(api.actions.cancel_bulk, call.named("id")))


async def _handlers(api: Api, _: Call) -> models.Handlers:
    return await api.library.run(api.library.handler_views)


async def _enable(api: Api, call: Call) -> models.Enabled:
    return await api.library.run(partial(api.actions.enable, call.named("name")))


async def _test(api: Api, call: Call) -> models.Tested:
    name = call.named("name")
    handler = next((one for one in api.library.handlers if one.name == name), None)
    if handler is None:
        raise Rejected("handler_unknown", f"the handlers file has no handler {name!r}", status=404)
    return cast(models.Tested, await api.outgoing().test(handler))


async def _albums(api: Api, _: Call) -> models.AlbumList:
    found = await api.library.run(partial(api.albums.all, api.library.clock()))
    return models.AlbumList(
        results=[models.Album(id=one.id, until=one.until, count=one.count) for one in found]
    )


async def _make_album(api: Api, call: Call) -> models.Album:
    body: models.AlbumBody = call.body
    given = {Kind.PREDICTION: body.predictions, Kind.TRAINING: body.trainings}
    refs = [(kind, one) for kind, ids in given.items() for one in dict.fromkeys(ids)]
    now = api.library.clock()
    make = partial(api.albums.make, refs, until=now + timedelta(days=body.days), now=now)
    made = await api.library.run(make)
    url = album_url(api.library.base_url, api.secret_keys, made.id, until=made.until, prompts=body.prompts)
    return models.Album(id=made.id, until=made.until, count=made.count, url=url)


async def _revoke_album(api: Api, call: Call) -> models.AlbumList:
    if not await api.library.run(partial(api.albums.revoke, call.named("id"))):
        raise Rejected("unknown", "no such album is open", status=404)
    return await _albums(api, call)


async def _checks(api: Api, _: Call) -> models.Checks:
    return await api.library.checks()


async def _stats(api: Api, call: Call) -> models.Stats:
    since = moment(call.query.since, api.library.clock())
    return await api.library.run(partial(api.library.stats, since, call.query.by))


async def _stream(api: Api, call: Call) -> Response:
    return await api.stream.answer(call.request)


async def _description(_: Api, __: Call) -> Response:
    from app.web.openapi import description  # noqa: PLC0415  it describes this module

    return JSONResponse(description())


_LIST = "/{folder}"
_ONE = "/{folder}/{id}"

OPERATIONS: Sequence[Operation] = (
    Operation(
        "list", "GET", _LIST, "What was received, the newest first", _list, [models.Page],
        query=models.ListQuery,
    ),
    Operation("show", "GET", _ONE, "All that is known of one", _one, [models.Whole], errors=[404]),
    Operation(
        "remove", "DELETE", _ONE, "Remove everything of it", _remove, [models.Removed], 202, errors=[404],
    ),
    Operation(
        "attempts", "GET", f"{_ONE}/attempts", "Every attempt to tell a handler", _attempts,
        [models.Attempts], errors=[404],
    ),
    Operation(
        "replay", "POST", f"{_ONE}/replay", "Tell handlers again", _replay, [models.ReplayAnswer], 202,
        body=models.ReplayBody, errors=[404],
    ),
    Operation(
        "rerun", "POST", f"{_ONE}/rerun", "Create it again, with a changed input", _rerun, [models.Rerun],
        202, body=models.RerunBody, errors=[404],
    ),
    Operation(
        "replayMany", "POST", "/replays", "Tell handlers again of many, or say of how many", _bulk,
        [models.BulkReplay, models.BulkPlan], 202, body=models.BulkBody, errors=[404],
    ),
    Operation(
        "showReplay", "GET", "/replays/{id}", "How far a bulk replay is", _bulk_state, [models.BulkReplay],
        errors=[404],
    ),
    Operation(
        "cancelReplay", "DELETE", "/replays/{id}", "End a bulk replay where it is", _cancel_bulk,
        [models.BulkReplay], errors=[404],
    ),
    Operation("handlers", "GET", "/handlers", "How each handler fares", _handlers, [models.Handlers]),
    Operation(
        "enable", "POST", "/handlers/{name}/enable", "Switch a handler on again", _enable, [models.Enabled],
        errors=[404],
    ),
    Operation(
        "test", "POST", "/handlers/{name}/test", "Send one signed sample to a handler", _test,
        [models.Tested], errors=[404],
    ),
    Operation("albums", "GET", "/albums", "The albums that are open", _albums, [models.AlbumList]),
    Operation(
        "makeAlbum", "POST", "/albums", "Show chosen outputs to whoever has the link", _make_album,
        [models.Album], 201, body=models.AlbumBody,
    ),
    Operation(
        "revokeAlbum", "DELETE", "/albums/{id}", "End an album now; those that are left", _revoke_album,
        [models.AlbumList], errors=[404],
    ),
    Operation("checks", "GET", "/checks", "What `outkeep doctor` says", _checks, [models.Checks]),
    Operation(
        "stats", "GET", "/stats", "Counts, bytes, seconds and waits", _stats, [models.Stats],
        query=models.StatsQuery,
    ),
    Operation("stream", "GET", "/stream", "Every change, as server-sent events", _stream, []),
    Operation("openapi", "GET", "/openapi.json", "This description", _description, []),
)  # fmt: skip


def by_path() -> Mapping[str, Mapping[str, tuple[Operation, Kind]]]:
    """The table by path and method, with each folder in the place of `{folder}`."""
    found: dict[str, dict[str, tuple[Operation, Kind]]] = {}
    for one in OPERATIONS:
        for kind in Kind if "{folder}" in one.path else [Kind.PREDICTION]:
            found.setdefault(one.path.replace("{folder}", kind.folder), {})[one.method] = (one, kind)
    return found


def _query(request: Request, wanted: type[B]) -> B:
    pairs = request.query_params.multi_items()
    given = dict(pairs)
    twice = sorted({name for name in given if sum(name == one for one, _ in pairs) > 1})
    if twice:
        raise Refused("bad_parameter", f"given more than once: {', '.join(twice)}", twice)
    return _proven(given, wanted, "parameter")


async def _read(request: Request) -> bytes:
    """The body, within its bound."""
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > LARGEST:
            raise Rejected("body_too_large", f"a body has {LARGEST >> 20} MiB at most", status=413)
        pieces.append(piece)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if size and media_type != "application/json":
        raise Rejected("media_type", "send the body as application/json", status=415)
    return b"".join(pieces)


def _body(raw: bytes, wanted: type[B]) -> B:
    try:
        given = json.loads(raw.decode()) if raw else {}
        json.dumps(given, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise Rejected("not_json", "the body is no JSON in UTF-8", status=400) from None
    if not isinstance(given, dict):
        raise Rejected("not_an_object", "the body is JSON, but no object", status=400)
    return _proven(given, wanted, "key")


def _proven(given: Mapping[str, Any], wanted: type[B], what: str) -> B:
    try:
        return wanted.model_validate(given)
    except ValidationError as error:
        found = {str(one["loc"][0]): one for one in error.errors(include_input=False, include_url=False)}
        names = sorted(found)
        unknown_ = [name for name in names if found[name]["type"] == "extra_forbidden"]
        if unknown_:
            raise Refused(f"unknown_{what}", f"no such {what}: {', '.join(unknown_)}", unknown_) from None
        reasons = "; ".join(f"{name}: {found[name]['msg'].removeprefix('Value error, ')}" for name in names)
        raise Refused(f"bad_{what}", reasons, names) from None


def problem_of(error: OutkeepError | RedisError) -> Response:
    """An error as RFC 9457 has it."""
    if isinstance(error, RedisError):
        error = Transient("redis_unavailable", f"Redis does not answer ({type(error).__name__})")
    if isinstance(error, Rejected):
        parameters = error.parameters if isinstance(error, Refused) else ()
        return problem(error.status, error.code, error.message, parameters)
    if isinstance(error, Transient):
        headers = {"retry-after": str(int(error.retry_after or RETRY_AFTER))}
        return problem(503, error.code, error.message, headers=headers)
    return problem(409, error.code, error.message)


def problem(
    status: int,
    code: str,
    detail: str,
    parameters: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer itself."""
    title = HTTPStatus(status).phrase
    said = models.Problem(title=title, status=status, detail=detail, code=code, parameters=list(parameters))
    more = {"www-authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else {}
    body = said.model_dump_json().encode()
    return Response(body, status, {**more, **(headers or {})}, media_type=PROBLEM)


async def _no_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = error.detail.lower().replace(" ", "_")
    return problem(error.status_code, code, error.detail, headers=error.headers)


async def _fault(_: Request, error: Exception) -> Response:
    return problem(500, "internal", f"the API failed ({type(error).__name__}); its log says where")
