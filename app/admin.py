"""Who may see what is not public: the holder of the admin token."""

import hmac

from pydantic import SecretStr
from starlette.requests import Request


def bearer(request: Request) -> bytes | None:
    """The bearer token of a request, as it came over the wire."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip().encode("latin-1") if scheme.lower() == "bearer" else None


def is_admin(request: Request, token: SecretStr | None) -> bool:
    """Whether the request carries the admin token; never when none is set."""
    given = bearer(request)
    if token is None or given is None:
        return False
    # The time it takes must not tell how much of a guess was right.
    return hmac.compare_digest(given, token.get_secret_value().encode())
