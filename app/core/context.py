"""What we sign into a webhook URL, since Replicate's own signature does not cover its query.

A token is `<base64url of a JSON object>.<base64url of its HMAC-SHA256>`, in the parameter `outkeep_context`.
What it holds comes back as the `context` of the event: what the user gave to `outkeep url`, and under
`outkeep`, for a follow-up prediction, what it follows.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import quote

from app.core.errors import Permanent
from app.core.links import derive
from app.core.names import ID, Kind

PARAMETER = "outkeep_context"

RESERVED = "outkeep"
"""The member of a context that is ours."""

RERUN_OF = "rerun_of"
"""The key there that says which prediction somebody has run again."""

MAX_BYTES = 1024
"""Of the JSON in a token, without what is ours in it: a URL that is much longer is refused here and there."""

Context = dict[str, Any]

Query = dict[str, str | list[str]]
"""Parameters of a URL: what is given once is a text, what is given more often a list, in its order."""


@dataclass(frozen=True)
class ContextKeys:
    """Keys that sign contexts: the first signs, each verifies (rotation)."""

    keys: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True)
class Lineage:
    """What a follow-up follows: `handler` made it from `parent`; `depth` is 1 for a first follow-up."""

    kind: Kind
    parent: str
    handler: str
    depth: int


def context_keys(secret_keys: Sequence[bytes]) -> ContextKeys:
    """The keys for contexts, derived so that no other purpose shares them."""
    return ContextKeys(tuple(derive(key, b"outkeep contexts v1") for key in secret_keys))


def seal(context: Mapping[str, Any], keys: ContextKeys) -> str:
    """The token for a context; raises `Permanent` (`context_too_large`) when it does not fit into a URL."""
    require_short({key: value for key, value in context.items() if key != RESERVED})
    payload = _payload(context)
    return f"{_encode(payload)}.{_encode(_mac(payload, keys.keys[0]))}"


def require_short(context: Mapping[str, Any]) -> None:
    """Raise `Permanent` (`context_too_large`) for what a user gives that is too large."""
    size = len(_payload(context))
    if size > MAX_BYTES:
        raise Permanent("context_too_large", f"a context has {MAX_BYTES} bytes at most, this one {size}")


def unseal(token: str, keys: ContextKeys) -> Context | None:
    """The context in a token; None when we did not make it. Never raises."""
    first, _, second = token.partition(".")
    payload, mac = _decode(first), _decode(second)
    if payload is None or mac is None:
        return None
    if not any(hmac.compare_digest(_mac(payload, key), mac) for key in keys.keys):
        return None
    context = json.loads(payload)
    return context if isinstance(context, dict) else None


def gathered(pairs: Iterable[tuple[str, str]]) -> Query:
    """The parameters of a URL by their names."""
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: given if len(given) > 1 else given[0] for name, given in values.items()}


def shortened(query: Query, limit: int) -> Query:
    """Those of the first parameters whose JSON fits into `limit` bytes together, without what is too long."""
    kept: Query = {}
    left = limit - len("{}")
    for name, value in query.items():
        size = len(json.dumps({name: value}))
        if size <= left:
            kept[name] = value
            left -= size
    return kept


def split_query(pairs: Iterable[tuple[str, str]], keys: ContextKeys) -> tuple[Query, Context | None]:
    """The parameters of a webhook URL that nobody signed, and the context that we did.

    A token that is not ours, or not the only one, stays among the parameters: the event itself is
    Replicate's, and must be kept.
    """
    query = gathered(pairs)
    token = query.get(PARAMETER)
    context = unseal(token, keys) if isinstance(token, str) else None
    if context is not None:
        del query[PARAMETER]
    return query, context


def webhook_url(base_url: str, kind: Kind, context: Mapping[str, Any] | None, keys: ContextKeys) -> str:
    """Where Replicate sends the events of a prediction or training; `base_url` is ours, seen from there."""
    query = f"?{PARAMETER}={quote(seal(context, keys))}" if context else ""
    return f"{base_url}{webhook_path(kind)}{query}"


def webhook_path(kind: Kind) -> str:
    """Where the receiver takes Replicate's events of a kind."""
    return "/webhooks/replicate" if kind is Kind.PREDICTION else "/webhooks/replicate/trainings"


def followed(context: Any, lineage: Lineage) -> Context:
    """The context of a follow-up: what the user gave to the first one goes on to the last."""
    given = context if isinstance(context, dict) else {}
    return {**given, RESERVED: asdict(lineage)}


def lineage(context: Any) -> Lineage | None:
    """What the prediction with this context follows; None when it follows nothing."""
    ours: Any = context.get(RESERVED) if isinstance(context, dict) else None
    try:
        found = Lineage(Kind(ours["kind"]), ours["parent"], ours["handler"], int(ours["depth"]))
    except (KeyError, TypeError, ValueError):
        return None
    named = (found.parent, found.handler)
    return found if all(isinstance(name, str) and ID.fullmatch(name) for name in named) else None


def parent(context: Any) -> str | None:
    """The id of what the prediction with this context follows."""
    found = lineage(context)
    if found is not None:
        return found.parent
    ours = context.get(RESERVED) if isinstance(context, dict) else None
    again = ours.get(RERUN_OF) if isinstance(ours, dict) else None
    return again if isinstance(again, str) and ID.fullmatch(again) else None


def _payload(context: Mapping[str, Any]) -> bytes:
    return json.dumps(context, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def _mac(payload: bytes, key: bytes) -> bytes:
    return hmac.digest(key, payload, hashlib.sha256)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes | None:
    """The bytes behind base64url without padding; None for anything else, also for a second spelling."""
    try:
        data = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except ValueError:
        return None
    return data if _encode(data) == text else None
