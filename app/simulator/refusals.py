"""How the API says no: `application/problem+json`, and 401 to whoever lacks the token."""

import hmac

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.errors import Rejected


class NeedsToken:
    """Lets requests with the right bearer token through; the others get 401."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        given = dict(scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(given, self._expected):
            await self._app(scope, receive, send)
        else:
            detail = "You did not pass a valid authentication token"
            await problem(401, detail)(scope, receive, send)


def problem(status: int, detail: str) -> Response:
    """An answer of `application/problem+json`."""
    return JSONResponse({"detail": detail, "status": status}, status, media_type="application/problem+json")


def refuse(_request: Request, error: Exception) -> Response:
    """What our own refusals become."""
    assert isinstance(error, Rejected)
    return problem(error.status, error.message)


def refuse_route(_request: Request, error: Exception) -> Response:
    """What the router's refusals become."""
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail)
