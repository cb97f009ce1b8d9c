"""The pages: each is what the JSON API answers, rendered. `app.web.forms` does what their forms ask for."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from app.core import notation
from app.core.context import webhook_path
from app.core.errors import OutkeepError, Permanent, Rejected
from app.core.names import ID, MANIFEST_NAME, Kind
from app.core.outputs import joined_text
from app.health.checks import Recent
from app.maintain.replay import Failure
from app.web import models, views
from app.web.catalog import Filters
from app.web.library import Library
from app.web.rendering import page, pretty, size
from app.web.session import Sessions, with_next
from app.web.signing import SIGN_IN, Signer

LIMIT = 60
NEWEST = 12
MOST_FAILURES = 500
SHARED = 0.5
"""Seconds for which all first pages say what was read for one; the script of pages waits longer to ask."""
MOST_TEXTS = 20
"""Stored texts that one page reads."""

KINDS = {kind.folder: kind for kind in Kind}
NOTES = {
    "replayed": ("good", "It is told again."),
    "kept": ("good", "It is being kept again."),
    "refused": ("bad", "Nothing could be done: {}"),
    "enabled": ("good", "It is switched on."),
    "tested": ("good", "It took the sample: {}"),
    "untested": ("bad", "It did not take the sample: {}"),
    "removed": ("good", "Removed, with everything of it."),
    "bulk": ("good", "{} are done again, one after the other."),
    "created": ("good", "It runs again as a new prediction."),
}
"""What a page says after a form: a code in its address → tone and text."""

LONGEST_NOTE = 300

log = logging.getLogger("outkeep.web")

_Answer = Callable[[Request], Awaitable[Response]]


@dataclass
class Dashboard:
    """Everything a person sees."""

    sessions: Sessions
    library: Library
    notes: Signer
    """Signs what a page says after a form, so that no link of a stranger makes it say anything."""
    runs_again: bool
    """Whether a token is there, with which predictions can be created."""
    _now: Recent[dict[str, Any]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._now = Recent(self._read_now, kept=SHARED)

    def routes(self) -> list[Route]:
        """All pages."""
        shown: dict[str, _Answer] = {
            "/": self.now,
            "/predictions": self.gallery,
            "/predictions/{id}": partial(self.one, kind=Kind.PREDICTION),
            "/trainings/{id}": partial(self.one, kind=Kind.TRAINING),
            "/failures": self.failures,
            "/handlers": self.handlers,
            "/checks": self.checks,
            "/stats": self.stats,
        }
        return [Route(path, self.guarded(answer), methods=["GET"]) for path, answer in shown.items()]

    def guarded(self, answer: _Answer) -> _Answer:
        """Let only those in who may see it, and turn errors into pages."""

        async def guarded(request: Request) -> Response:
            try:
                self.sessions.require(request)
                return await answer(request)
            except Rejected as error:
                if error.code == "sign_in_needed" and request.method == "GET":
                    return _to_sign_in(request)
                return refusal(request, error.status, error.message)
            except OutkeepError as error:
                status = (
                    HTTPStatus.CONFLICT if isinstance(error, Permanent) else HTTPStatus.SERVICE_UNAVAILABLE
                )
                return refusal(request, status, error.message)
            except RedisError as error:
                text = f"Redis does not answer ({type(error).__name__}); deliveries are taken all the same."
                return refusal(request, HTTPStatus.SERVICE_UNAVAILABLE, text)

        return guarded

    async def page(self, request: Request, template: str, **values: Any) -> Response:
        """A page in its frame."""
        return page(
            request,
            template,
            storage_origin=await self.storage_origin(),
            now=self.library.clock(),
            note=self._note(request),
            **values,
        )

    async def storage_origin(self) -> str | None:
        """Where pictures may come from beside ourselves."""
        if self.library.storage.folder is not None:
            return None
        link = await self.library.run(self.library.elsewhere)
        parts = urlsplit(link or "")
        return f"{parts.scheme}://{parts.netloc}" if link else None

    def _note(self, request: Request) -> Mapping[str, str] | None:
        found = self.notes.unseal(request.query_params.get("note", ""))
        tone, text = NOTES.get(str(found.get("code")), ("", ""))
        return {"tone": tone, "text": text.format(found.get("text", ""))} if text else None

    def noted(self, where: str, code: str, text: str = "") -> Response:
        """Lead on to a page that says what was done."""
        signed = self.notes.seal({"code": code, "text": text[:LONGEST_NOTE]})
        address, _, fragment = where.partition("#")
        joint = "&" if "?" in address else "?"
        return RedirectResponse(f"{address}{joint}note={signed}{'#' if fragment else ''}{fragment}", 303)

    async def now(self, request: Request) -> Response:
        """`/`: how it stands."""
        read, checks = await self._now.get(), await self.library.checks()
        needs = views.needs(read["failures"], read["handlers"], checks.findings, read["total"])
        return await self.page(request, "now.html", needs=needs, **read, **self._hook())

    def _read_now(self) -> dict[str, Any]:
        library, now = self.library, self.library.clock()
        stats = library.stats(now - timedelta(days=1), "model")
        failures, running = library.failures(MOST_FAILURES), library.running(base_url="")
        newest, _ = library.page(Filters(), NEWEST, base_url="")
        return {
            "truth": views.truth(stats.total, running, len(failures), now),
            "total": stats.total,
            "catalog": stats.catalog,
            "failures": failures,
            "running": running,
            "handlers": library.handler_views().results,
            "newest": newest,
        }

    def _hook(self) -> dict[str, Any]:
        base_url = self.library.base_url
        is_public = base_url.startswith("https:")
        return {"hook": f"{base_url}{webhook_path(Kind.PREDICTION)}", "is_public": is_public}

    async def gallery(self, request: Request) -> Response:
        """`/predictions`: all that was kept, narrowed by the parameters."""
        library, params = self.library, request.query_params
        given = {name: params.get(name) or None for name in (
            "q", "status", "model", "handler", "parent", "since", "lost", "untold", "view",
        )}  # fmt: skip
        filters = Filters(
            q=given["q"], status=given["status"], model=given["model"], handler=given["handler"],
            parent=given["parent"], lost=given["lost"] == "true", untold=given["untold"] == "true",
            since=None if given["since"] is None else library.clock() - _span(given["since"]),
        )  # fmt: skip
        before = _number(params.get("cursor"))

        def read() -> dict[str, Any]:
            results, following = library.page(filters, LIMIT, before, base_url="")
            return {"results": results, "next": following, "models": library.catalog.models()}

        return await self.page(
            request,
            "predictions.html",
            filters=given,
            narrowed=any(given[name] for name in given if name != "view"),
            handlers=[handler.name for handler in library.handlers],
            **await library.run(read),
            **self._hook(),
        )

    async def one(self, request: Request, *, kind: Kind) -> Response:
        """`/predictions/{id}`, `/trainings/{id}`: all of one."""
        prediction_id = request.path_params["id"]
        whole = await self.library.run(partial(self._whole, kind, prediction_id))
        values = await self.library.run(partial(self._details, whole))
        return await self.page(request, "prediction.html", **values)

    def _whole(self, kind: Kind, prediction_id: str) -> models.Whole:
        found = self.library.one(kind, prediction_id, base_url="") if ID.fullmatch(prediction_id) else None
        if found is None:
            raise Rejected(
                "not_found",
                f"Nothing is known of {prediction_id}: it was removed, or never came.",
                status=404,
            )
        return found

    def _details(self, whole: models.Whole) -> dict[str, Any]:
        library, kind = self.library, whole.kind
        lineage = [
            one.id
            for one in ([whole.lineage.parent] if whole.lineage.parent else []) + whole.lineage.children
        ]
        rows = library.summaries([(kind, one) for one in (whole.id, *lineage)], base_url="")
        parent = library.one(kind, whole.lineage.parent.id, base_url="") if whole.lineage.parent else None
        raw = (whole.manifest or {}).get("prediction", {})
        outputs = [file for file in whole.files if not file.is_input]
        output = raw.get("output")
        inline = None if outputs or output in (None, "", [], {}) else joined_text(output) or pretty(output)
        pictures = {
            file.pointer: file.url for file in whole.files if file.is_input and _is_picture(file.name)
        }
        given = views.items(raw.get("input"), _input(parent), pictures)
        record = whole.record
        return {
            "whole": whole,
            "one": rows.get(whole.id) or _bare(whole),
            "headline": next((item.text for item in given if item.is_text), whole.id)[:200],
            "outputs": self._shown(whole, outputs),
            "inline": inline,
            "inline_is_code": not isinstance(output, str | list),
            "error": _text(raw.get("error")) or (record.error if record else None),
            "links": (whole.manifest or {}).get("links", []),
            "logs": raw.get("logs") or (record.live.logs if record and record.live else None),
            "live": record.live if record and not whole.manifest else None,
            "input": given,
            "parent": [rows[whole.lineage.parent.id]]
            if whole.lineage.parent and whole.lineage.parent.id in rows
            else [],
            "children": [rows[one.id] for one in whole.lineage.children if one.id in rows],
            "timeline": views.timeline(whole, library.attempts(kind, whole.id)),
            "facts": _facts(whole, raw),
            "manifest_url": library.link(kind, whole.id, MANIFEST_NAME, base_url="")
            if whole.manifest
            else None,
            "rerun_refused": self._rerun_refused(whole),
        }

    def _shown(self, whole: models.Whole, files: Sequence[models.File]) -> list[views.Shown]:
        """Files with the texts that are short enough to be read for a page."""
        found, read = [], 0
        for file in files:
            text = None
            if (
                views.shown_as(file.name, file.encoding) == "text"
                and file.size <= views.LONGEST_TEXT
                and read < MOST_TEXTS
            ):
                data = self.library.storage.get(f"{whole.kind.folder}/{whole.id}/{file.name}")
                text = data.decode(errors="replace") if data is not None else None
                read += 1
            found.append(views.shown(file, text))
        return found

    def _rerun_refused(self, whole: models.Whole) -> str | None:
        if whole.kind is not Kind.PREDICTION:
            return "A training is not run again from here."
        if whole.manifest is None:
            return "It can be run again once it is kept."
        if not self.runs_again:
            return "Set REPLICATE_API_TOKEN where Outkeep runs: predictions are created with it."
        return None

    async def failures(self, request: Request) -> Response:
        """`/failures`: what was given up."""
        library = self.library
        given = {name: request.query_params.get(name) or None for name in ("handler", "model")}
        handler = given["handler"]

        def read() -> dict[str, Any]:
            return {"failures": self._failures(given), "models": library.catalog.models()}

        command = "outkeep replay --failed" + (f" --handler {handler}" if handler else "")
        return await self.page(
            request,
            "failures.html",
            filters=given,
            command=command,
            handlers=[one.name for one in library.handlers],
            **await library.run(read),
        )

    def _failures(self, given: Mapping[str, str | None]) -> list[dict[str, Any]]:
        found = [
            one for one in self.library.failures(MOST_FAILURES) if given["handler"] in {None, one.handler}
        ]
        by_kind = [(one.kind, one.id) for one in found]
        rows = self.library.summaries(by_kind)
        return [
            shown
            for shown in (_failure(one, rows.get(one.id)) for one in found)
            if given["model"] in {None, shown["model"]}
        ]

    async def handlers(self, request: Request) -> Response:
        """`/handlers`."""
        found = await self.library.run(self.library.handler_views)
        return await self.page(request, "handlers.html", handlers=found.results)

    async def checks(self, request: Request) -> Response:
        """`/checks`: what `outkeep doctor` says, the worst first."""
        checks = await self.library.checks()
        order = ["fail", "warn", "ok"]
        findings = sorted(checks.findings, key=lambda one: order.index(one.level.value))
        return await self.page(request, "checks.html", checks=checks, findings=findings)

    async def stats(self, request: Request) -> Response:
        """`/stats`."""
        library, word = self.library, request.query_params.get("since") or "7d"
        since = library.clock() - _span(word)

        def read() -> dict[str, Any]:
            by_model, by_day = library.stats(since, "model"), library.stats(since, "day")
            return {
                "total": by_model.total,
                "models": by_model.groups,
                "days": by_day.groups,
                "chart": views.chart(by_day.groups, since, library.clock()),
            }

        return await self.page(request, "stats.html", since=word, **await library.run(read))


def refusal(request: Request, status: int, text: str) -> Response:
    """A page that says why not."""
    title = {404: "Not here", 503: "Not now"}.get(status, "Not done")
    return page(request, "message.html", status=status, title=title, text=text)


def _to_sign_in(request: Request) -> Response:
    where = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if request.headers.get("sec-fetch-site") == "cross-site":
        # A link on another site: the browser keeps the session back, and brings it when we ask ourselves.
        return page(request, "onward.html", where=where)
    return RedirectResponse(with_next(SIGN_IN, where), 303)


def _span(text: str) -> timedelta:
    try:
        return timedelta(seconds=notation.duration(text))
    except (Permanent, OverflowError):
        raise Rejected("bad_parameter", f"since: write a time such as 24h or 7d, not {text[:40]!a}") from None


def _number(text: str | None) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 19):  # noqa: PLR2004
        raise Rejected("bad_parameter", "cursor: it is none of ours")
    return int(text)


def _text(value: Any) -> str | None:
    return pretty(value) if value else None


def _input(whole: models.Whole | None) -> Any:
    return None if whole is None else (whole.manifest or {}).get("prediction", {}).get("input")


def _is_picture(name: str) -> bool:
    return views.shown_as(name) == "picture"


def _failure(one: Failure, row: models.Summary | None) -> dict[str, Any]:
    title = (row.prompt or row.text or one.id) if row else one.id
    return {
        "kind": one.kind, "id": one.id, "handler": one.handler, "error": one.error, "attempts": one.attempts,
        "at": one.at, "title": title, "model": row.model if row else None,
    }  # fmt: skip


def _bare(whole: models.Whole) -> Mapping[str, Any]:
    """What the head of the page shows while the catalog does not have it yet."""
    raw = (whole.manifest or {}).get("prediction", {})
    record = whole.record
    return {
        "state": record.state if record else "dispatched",
        "status": raw.get("status") or (record.status if record else ""),
        "model": raw.get("model") or (record.model if record else None),
        "lost": len(whole.lost), "expires_at": whole.expires_at,
        "picture": None, "prompt": None, "text": None, "error": None, "id": whole.id, "kind": whole.kind,
    }  # fmt: skip


def _facts(whole: models.Whole, raw: Mapping[str, Any]) -> list[tuple[str, str]]:
    manifest = whole.manifest or {}
    metrics = raw.get("metrics")
    shown = {
        "Version": raw.get("version"),
        "Source": manifest.get("source"),
        "Files": f"{len(whole.files)}, {size(sum(file.size for file in whole.files))}"
        if whole.files
        else None,
        **(
            {f"Metric {name}": value for name, value in list(metrics.items())[:12]}
            if isinstance(metrics, dict)
            else {}
        ),
        "Context": manifest.get("context"),
        "Query (not signed)": manifest.get("query"),
    }
    return [(name, pretty(value)) for name, value in shown.items() if value not in (None, "", {})]
