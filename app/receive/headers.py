"""Headers of requests and answers: bearer tokens, allowed hosts, and what stands on every answer."""

import hashlib
import hmac
import time
from collections.abc import Mapping
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import Rejected
from app.core.hosts import AllowedHosts
from app.core.secret import SecretStr
from app.receive.rate_limit import Guesses


def bearer(request: Request) -> bytes | None:
    """The bearer token of a request, as it came over the wire; None also when there is more than one."""
    values = request.headers.getlist("authorization")
    scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return token.strip().encode("latin-1") if scheme.lower() == "bearer" else None


def carries(request: Request, token: SecretStr | None) -> bool:
    """Whether the request carries exactly this token; never when none is set."""
    given = bearer(request)
    if token is None or given is None:
        return False
    # The time it takes must not tell how much of a guess was right, nor how long the token is.
    return hmac.compare_digest(_digest(given), _digest(token.get_secret_value().encode()))


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


ON_EVERY_ANSWER = [("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer")]
"""For the server itself, which also answers what is not HTTP. A referrer would give away signed links."""

POLICY = "default-src 'none'; frame-ancestors 'none'"
"""The content security policy of answers that bring none of their own."""

ANY_NAME = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked for by machines, under whatever name they know us."""

WEBHOOKS = "/webhooks/"
"""Never refused here: that would lose events."""


API = "/api/"
"""Where errors are problems, as RFC 9457 has them."""


class Gate:
    """Wraps the whole application, also its error pages."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hooks: Mapping[str, ASGIApp] | None = None,
        allowed: AllowedHosts | None = None,
        admin_token: SecretStr | None = None,
    ) -> None:
        """Serve pages and API under `allowed` names only; None: under any.

        A POST to the path of one of `hooks` goes to it and no other way.
        """
        self._app = app
        self._hooks = hooks or {}
        self._allowed = allowed
        self._admin_token = admin_token
        self._guesses = Guesses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        hook = self._hooks.get(scope["path"])
        if hook is not None and scope["method"] == "POST":
            await hook(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("content-security-policy", POLICY)
            await send(message)

        app = self._app
        try:
            if not scope["path"].startswith(WEBHOOKS):
                self._check_name(Request(scope))
                self._check_token(Request(scope), time.monotonic())
        except Rejected as error:
            content = _refused(scope["path"], error)
            headers = {"retry-after": str(int(error.retry_after))} if isinstance(error, _Patience) else None
            media_type = "application/problem+json" if "detail" in content else None
            app = JSONResponse(content, error.status, headers, media_type)
        await app(scope, receive, send_with_policy)

    def _check_name(self, request: Request) -> None:
        if self._allowed is None or request.scope["path"] in ANY_NAME:
            return
        if not self._allowed.allows(request.headers.getlist("host")):
            message = "nothing is served under this name; OUTKEEP_ALLOWED_HOSTS lists the others"
            raise Rejected("host_refused", message, status=400)

    def _check_token(self, request: Request, now: float) -> None:
        """Right tokens wait as well, or a guess would be answered all the same."""
        if self._admin_token is None or bearer(request) is None:
            return
        address = request.client.host if request.client else ""
        wait = self._guesses.wait(address, now)
        if wait > 0:
            raise _Patience(wait)
        if not carries(request, self._admin_token):
            self._guesses.wrong(address, now)


def _refused(path: str, error: Rejected) -> dict[str, str | int]:
    """As the API says it, or everybody else."""
    if not path.startswith(API):
        return {"error": error.code, "message": error.message}
    title = HTTPStatus(error.status).phrase
    said = {"detail": error.message, "code": error.code}
    return {"type": "about:blank", "title": title, "status": error.status, **said}


class _Patience(Rejected):
    def __init__(self, seconds: float) -> None:
        super().__init__("too_many_tokens", "too many wrong tokens from this address; wait", status=429)
        self.retry_after = seconds + 1
