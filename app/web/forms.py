"""What the forms of the pages ask for: the same as the API does, told in a page afterwards."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.core.errors import OutkeepError, Rejected
from app.core.names import ID, Kind
from app.web import models, views
from app.web.actions import Actions
from app.web.dashboard import KINDS, Dashboard
from app.web.downloads import Download
from app.web.rendering import number, read_form
from app.web.session import next_page

if TYPE_CHECKING:
    from app.web.outgoing import Outgoing

LARGEST_FORM = 2 << 20
MOST_CHOSEN = 200

Ref = tuple[Kind, str]


@dataclass(frozen=True)
class Forms:
    """Routes that only forms use; each leads on to a page."""

    dashboard: Dashboard
    actions: Actions
    outgoing: Callable[[], "Outgoing"]
    """Opened when it is needed: it brings clients that a receiver does without."""
    download: Download

    def routes(self) -> list[Route]:
        """All of them."""
        posted = {
            "/{folder}/{id}/replay": self.replay,
            "/{folder}/{id}/rerun": self.rerun,
            "/{folder}/{id}/remove": self.remove,
            "/selection": self.selection,
            "/failures/replay": self.replay_failures,
            "/handlers/{name}/enable": self.enable,
            "/handlers/{name}/test": self.test,
        }
        guarded = self.dashboard.guarded
        return [
            *(Route(path, guarded(act), methods=["POST"]) for path, act in posted.items()),
            Route("/{folder}/{id}/remove", guarded(self.ask_removal), methods=["GET"]),
        ]

    async def replay(self, request: Request) -> Response:
        """Tell again of one, all handlers or one of them; keep its outputs where that had failed."""
        kind, prediction_id = _ref(request)
        form = await read_form(request, largest=LARGEST_FORM)
        where = next_page(form.get("back")) if form.get("back") else _page(kind, prediction_id)
        run = self.dashboard.library.run
        answer = await run(partial(self.actions.replay, kind, prediction_id, form.get("handler") or None))
        refused = [one.reason or "" for one in answer.results if one.outcome == "refused"]
        if refused:
            return self.dashboard.noted(where, "refused", refused[0])
        kept = any(one.handler is None for one in answer.results)
        return self.dashboard.noted(where, "kept" if kept else "replayed")

    async def rerun(self, request: Request) -> Response:
        """Create a prediction with a changed input, and lead on to it."""
        kind, prediction_id = _ref(request)
        form = await read_form(request, largest=LARGEST_FORM)
        names = ("key", "value", "was", "text")
        try:
            changed = views.changed(*(form.getlist(name) for name in names))
        except ValueError as error:
            raise Rejected("bad_input", str(error)) from None
        made = await self.outgoing().rerun(kind, prediction_id, changed)
        return self.dashboard.noted(_page(made.kind, made.id), "created")

    async def ask_removal(self, request: Request) -> Response:
        """Ask whether one shall be removed."""
        ref = _ref(request)
        return await self._confirm_removal(request, [ref], back=_page(*ref))

    async def remove(self, request: Request) -> Response:
        """Remove one, once that was confirmed."""
        ref = _ref(request)
        form = await read_form(request, largest=LARGEST_FORM)
        if form.get("sure") != "yes":
            return await self._confirm_removal(request, [ref], back=_page(*ref))
        await self.dashboard.library.run(partial(self.actions.remove, *ref))
        return self.dashboard.noted("/predictions", "removed")

    async def selection(self, request: Request) -> Response:
        """Do something with all that were chosen."""
        form = await read_form(request, largest=LARGEST_FORM)
        back, refs = next_page(form.get("back")), list(_chosen(form))
        match form.get("action"):
            case "download":
                return await self.download.answer(request, refs)
            case "replay":
                answers = await self.dashboard.library.run(partial(self._replay_all, refs))
                done = sum(all(line.outcome != "refused" for line in one.results) for one in answers)
                return self.dashboard.noted(back, "bulk", number(done))
            case "remove" if form.get("sure") == "yes":
                await self.dashboard.library.run(partial(self._remove_all, refs))
                return self.dashboard.noted(back, "removed")
            case "remove":
                return await self._confirm_removal(request, refs, back=back)
        raise Rejected("bad_form", "the form says nothing that can be done")

    def _replay_all(self, refs: Sequence[Ref]) -> list[models.ReplayAnswer]:
        return [self.actions.replay(*ref, None) for ref in refs]

    def _remove_all(self, refs: Sequence[Ref]) -> None:
        for ref in refs:
            try:
                self.actions.remove(*ref)
            except Rejected:  # it is gone already
                continue

    async def _confirm_removal(self, request: Request, refs: Sequence[Ref], *, back: str) -> Response:
        what = f"this {refs[0][0]}" if len(refs) == 1 else f"{len(refs)} predictions"
        return await self.dashboard.page(
            request,
            "confirm.html",
            title=f"Remove {what}?",
            text="Its files, its texts, its record and what is told of it go, here and in the storage. "
            "Nobody can bring it back.",
            names=[prediction_id for _, prediction_id in refs],
            action="/selection",
            fields=[
                *(("ref", f"{kind.folder}/{prediction_id}") for kind, prediction_id in refs),
                ("action", "remove"),
                ("back", "/predictions" if len(refs) == 1 else back),
            ],
            button="Remove for good",
            is_dangerous=True,
            back=back,
            command=f"outkeep rm {' '.join(prediction_id for _, prediction_id in refs[:3])}"
            + (" …" if len(refs) > 3 else ""),  # noqa: PLR2004
        )

    async def replay_failures(self, request: Request) -> Response:
        """Do again all that failed and matches: first say how many, then do it."""
        form = await read_form(request, largest=LARGEST_FORM)
        chosen = {name: form.get(name) or None for name in ("handler", "model")}
        body = models.BulkBody(failed=True, handler=chosen["handler"], model=chosen["model"])
        run = self.dashboard.library.run
        todo = await run(partial(self.actions.plan, body))
        fields = [(name, value) for name, value in chosen.items() if value]
        back = "/failures" + "".join(
            f"{'&' if place else '?'}{name}={quote(value)}" for place, (name, value) in enumerate(fields)
        )
        if form.get("sure") == "yes":
            made = await run(partial(self.actions.begin_bulk, todo, failed=True))
            return self.dashboard.noted(back, "bulk", number(made.count))
        handler = f" --handler {chosen['handler']}" if chosen["handler"] else ""
        return await self.dashboard.page(
            request,
            "confirm.html",
            title=f"Replay {number(len(todo))}?",
            text="Each is done once more, one after the other: handlers are told with the same webhook-id as "
            "before, and outputs that are still there are fetched.",
            names=[prediction_id for _, _, prediction_id in todo],
            action="/failures/replay",
            fields=fields,
            button=f"Replay {number(len(todo))}",
            is_dangerous=False,
            back=back,
            command=f"outkeep replay --failed{handler}",
        )

    async def enable(self, request: Request) -> Response:
        """Switch a handler on again."""
        await self.dashboard.library.run(partial(self.actions.enable, request.path_params["name"]))
        return self.dashboard.noted(_handler(request), "enabled")

    async def test(self, request: Request) -> Response:
        """Send one signed sample to a handler, and say what came back."""
        name = request.path_params["name"]
        handler = next((one for one in self.actions.handlers if one.name == name), None)
        if handler is None:
            raise Rejected("handler_unknown", f"the handlers file has no handler {name!r}", status=404)
        try:
            answer = await self.outgoing().test(handler)
        except OutkeepError as error:
            return self.dashboard.noted(_handler(request), "untested", error.message)
        said = f"{answer.error or answer.status}, {answer.milliseconds} ms. {answer.detail}"
        return self.dashboard.noted(_handler(request), "untested" if answer.error else "tested", said)


def _ref(request: Request) -> Ref:
    kind, prediction_id = KINDS.get(request.path_params["folder"]), request.path_params["id"]
    if kind is None or not ID.fullmatch(prediction_id):
        raise Rejected("not_found", "There is no such page.", status=404)
    return kind, prediction_id


def _page(kind: Kind, prediction_id: str) -> str:
    return f"/{kind.folder}/{prediction_id}"


def _handler(request: Request) -> str:
    return f"/handlers#{quote(request.path_params['name'])}"


def _chosen(form: QueryParams) -> Iterator[Ref]:
    found = form.getlist("ref")
    if not 0 < len(found) <= MOST_CHOSEN:
        raise Rejected("bad_form", f"choose one to {MOST_CHOSEN}")
    for text in dict.fromkeys(found):
        folder, _, prediction_id = text.partition("/")
        if folder not in KINDS or not ID.fullmatch(prediction_id):
            raise Rejected("bad_form", "what was chosen is no prediction")
        yield KINDS[folder], prediction_id
