"""The pages: each is what the JSON API answers, rendered; what a form asks for, the API's functions do."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from app.core.errors import OutkeepError, Permanent, Rejected
from app.web.rendering import page
from app.web.session import Sessions, with_next
from app.web.signing import SIGN_IN

_Answer = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Dashboard:
    """Everything a person sees."""

    sessions: Sessions

    def routes(self) -> list[Route]:
        """All pages, and what their forms post to."""
        shown: dict[str, _Answer] = {"/": self.now}
        return [Route(path, self._guarded(answer), methods=["GET"]) for path, answer in shown.items()]

    def _guarded(self, answer: _Answer) -> _Answer:
        async def guarded(request: Request) -> Response:
            try:
                self.sessions.require(request)
                return await answer(request)
            except Rejected as error:
                if error.code == "sign_in_needed" and request.method == "GET":
                    return self._to_sign_in(request)
                return page(
                    request, "message.html", status=error.status, title="Not done", text=error.message
                )
            except OutkeepError as error:
                missing = isinstance(error, Permanent)
                status = HTTPStatus.CONFLICT if missing else HTTPStatus.SERVICE_UNAVAILABLE
                return page(request, "message.html", status=status, title="Not done", text=error.message)

        return guarded

    def _to_sign_in(self, request: Request) -> Response:
        where = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        if request.headers.get("sec-fetch-site") == "cross-site":
            # A link on another site: the browser keeps the session back, and brings it when we ask ourselves.
            return page(request, "onward.html", where=where)
        return RedirectResponse(with_next(SIGN_IN, where), 303)

    async def now(self, request: Request) -> Response:
        """`/`."""
        return page(request, "message.html", title="Outkeep", text="")
