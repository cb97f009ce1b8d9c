"""Bearer tokens: reading one from a request, and comparing it with ours."""

import hashlib
import hmac

from pydantic import SecretStr
from starlette.requests import Request


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
