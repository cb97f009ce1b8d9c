"""The pages that begin and end a session."""

from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from app.core.errors import Rejected, Transient
from app.web.rendering import asset, page, read_form
from app.web.session import Sessions, next_page, require_own_page
from app.web.signing import SIGN_IN

LARGEST_FORM = 16 << 10


@dataclass(frozen=True)
class SignIn:
    """`/sign-in`, `/sign-out` and the assets that any page needs."""

    sessions: Sessions

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/assets/{name}", asset, methods=["GET"]),
            Route(SIGN_IN, self.show, methods=["GET"]),
            Route(SIGN_IN, self.begin, methods=["POST"]),
            Route("/sign-out", self.end, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        """The form; or, with a link that is good once, the beginning of a session."""
        link = request.query_params.get("link")
        if link is None or request.method == "HEAD":
            return page(
                request, "sign_in.html", reason=None, where=next_page(request.query_params.get("next"))
            )
        try:
            await self.sessions.begin_with_link(link)
        except (Rejected, Transient) as error:
            if self.sessions.is_signed_in(request):  # it was opened twice in one browser
                return RedirectResponse("/", 303)
            status = error.status if isinstance(error, Rejected) else HTTPStatus.SERVICE_UNAVAILABLE
            return page(request, "sign_in.html", status=status, reason=error.message, where="/")
        return self._welcome(request, "/")

    async def begin(self, request: Request) -> Response:
        """Take the admin token from the form."""
        where = "/"
        try:
            form = await read_form(request, largest=LARGEST_FORM)
            where = next_page(form.get("next"))
            self.sessions.begin_with_token(request, form.get("token", ""))
        except Rejected as error:
            return page(request, "sign_in.html", status=error.status, reason=error.message, where=where)
        return self._welcome(request, where)

    async def end(self, request: Request) -> Response:
        """Forget the session in this browser."""
        try:
            require_own_page(request)
        except Rejected as error:
            return page(request, "message.html", status=error.status, title="Not done", text=error.message)
        response = RedirectResponse(SIGN_IN, 303)
        self.sessions.end(request, response)
        return response

    def _welcome(self, request: Request, where: str) -> Response:
        # Not a redirect: a browser that came from another site would follow that without the new cookie.
        response = page(request, "onward.html", where=where)
        self.sessions.begin(request, response)
        return response
