"""Who may see the pages: the admin token, a session that was begun with it, or a link that is good once.

The admin token goes into the key that signs sessions, so that a new token ends all of them.
"""

import asyncio
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from redis import Redis
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import Response

from app.core.errors import Rejected, Transient
from app.core.names import used_link_key
from app.core.secret import SecretStr
from app.receive.headers import bearer, carries
from app.receive.rate_limit import Guesses
from app.web.signing import Signer, link_signer

LIFE = 12 * 3600
"""Seconds for which a session lasts."""

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

LONGEST_TOKEN = 4096

_OWN_PAGE = re.compile(
    r"/(?:[A-Za-z0-9_.~%!$&'()*+,;=:@?-][A-Za-z0-9_.~%!$&'()*+,;=:@?/-]{0,2000})?", re.ASCII
)
"""A path with its query, and never one that begins as an address of another host does."""


@dataclass(frozen=True)
class Sessions:
    """Admits requests, begins sessions and ends them."""

    admin_token: SecretStr
    secret_keys: Sequence[bytes] = field(repr=False)
    redis: Redis
    clock: Callable[[], float]
    """Unix seconds."""
    _guesses: Guesses = field(init=False, repr=False, default_factory=Guesses)

    def require(self, request: Request) -> None:
        """Admit a request with the admin token or a session, else raise `Rejected` (401, 403).

        Browsers send a session with whatever request: one that changes something must come from our pages.
        """
        if carries(request, self.admin_token):
            return
        if bearer(request) is not None:
            raise Rejected("token_refused", "the token is not the admin token", status=401)
        if not self.is_signed_in(request):
            message = "sign in, or send the admin token as a bearer token"
            raise Rejected("sign_in_needed", message, status=401)
        require_own_page(request)

    def is_signed_in(self, request: Request) -> bool:
        """Whether a session of ours comes with the request."""
        found = self._signer().unseal(request.cookies.get(_cookie(request), ""))
        return float(found.get("until", 0)) > self.clock()

    def begin_with_token(self, request: Request, token: str) -> None:
        """Accept the admin token from a form; raises `Rejected` (403, 429 after too many guesses)."""
        require_own_page(request)
        address = request.client.host if request.client else ""
        if self._guesses.wait(address, time.monotonic()) > 0:
            message = "too many wrong tokens from this address; wait for a minute"
            raise Rejected("too_many_tokens", message, status=429)
        # Hashed, so that the time it takes tells neither how much was right nor how long it is.
        given, wanted = (
            hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
            for text in (token[:LONGEST_TOKEN].strip(), self.admin_token.get_secret_value())
        )
        if not hmac.compare_digest(given, wanted):
            self._guesses.wrong(address, time.monotonic())
            raise Rejected("token_refused", "this is not the admin token", status=403)

    async def begin_with_link(self, signed: str) -> None:
        """Accept a link of `sign_in_url`, once; raises `Rejected` (403), `Transient` without Redis."""
        found = link_signer(self.secret_keys).unseal(signed)
        left = found.get("until", 0) - self.clock()
        if left <= 0:
            raise Rejected("link_refused", "this link is over, or not ours", status=403)
        mark = used_link_key(str(found["once"]))
        try:
            first = await asyncio.to_thread(self.redis.set, mark, "1", nx=True, ex=int(left) + 60)
        except RedisError as error:
            message = f"Redis does not answer ({type(error).__name__}), so nobody knows whether it was used"
            raise Transient("redis_unavailable", message) from None
        if not first:
            raise Rejected("link_used", "this link was used already; each is good once", status=403)

    def begin(self, request: Request, response: Response) -> None:
        """Put a new session into an answer."""
        signed = self._signer().seal({"until": int(self.clock()) + LIFE})
        self._set_cookie(request, response, signed, LIFE)

    def end(self, request: Request, response: Response) -> None:
        """Let the browser forget its session."""
        self._set_cookie(request, response, "", 0)

    def _set_cookie(self, request: Request, response: Response, value: str, life: int) -> None:
        response.set_cookie(
            _cookie(request), value, max_age=life, path="/", httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip

    def _signer(self) -> Signer:
        token = hashlib.sha256(self.admin_token.get_secret_value().encode()).digest()
        return Signer(self.secret_keys, b"outkeep sessions v1" + token)


def require_own_page(request: Request) -> None:
    """Raise `Rejected` (403) for a request that changes something and does not come from a page of ours."""
    if request.method in SAFE:
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    hosts = request.headers.getlist("host")
    ours = site == "same-origin" if site else bool(origin) and [urlsplit(origin or "").netloc] == hosts
    if not ours:
        message = "only pages of this host may do that; from elsewhere, send the admin token"
        raise Rejected("foreign_site", message, status=403)


def with_next(path: str, where: str) -> str:
    """The address of a page that leads on to `where` afterwards."""
    return path if where == "/" else f"{path}?{urlencode({'next': where})}"


def next_page(text: str | None) -> str:
    """The page of ours to which `with_next` wanted to lead; the first one for anything else."""
    return text if text and _OWN_PAGE.fullmatch(text) else "/"


def _cookie(request: Request) -> str:
    # Browsers keep cookies of one host apart by name only, not by port.
    return "__Host-outkeep" if request.url.scheme == "https" else f"outkeep-{request.url.port or 80}"
