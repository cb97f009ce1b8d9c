"""Templates, style sheet and scripts: what a page looks like, and the policy it is shown under."""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from app.core.errors import Rejected
from app.core.names import Kind

ASSETS = Path(__file__).parent / "assets"
TEMPLATES = Path(__file__).parent / "templates"
ASSET_TYPES = {
    "outkeep.css": "text/css; charset=utf-8",
    "outkeep.js": "text/javascript; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "outkeep.svg": "image/svg+xml",
}
"""What is served of the folder of assets."""

MOST_FIELDS = 1000
"""Fields of a form: a selection has one for each prediction."""

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_THOUSAND = 1000


def policy(storage_origin: str | None = None) -> str:
    """The content security policy of our pages; pictures and players may also load from the storage."""
    media = f"'self' {storage_origin}" if storage_origin else "'self'"
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; "
        f"img-src {media}; media-src {media}; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    )


def page(
    request: Request, template: str, *, status: int = 200, storage_origin: str | None = None, **values: Any
) -> Response:
    """The answer that shows `template`; nobody may keep it, since what it says changes and is private."""
    text = _environment().get_template(template).render(path=request.url.path, **values)
    headers = {"cache-control": "no-store", "content-security-policy": policy(storage_origin)}
    return HTMLResponse(text, status_code=status, headers=headers)


async def read_form(request: Request, *, largest: int) -> QueryParams:
    """The fields of a posted form; raises `Rejected` (400, 413)."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > largest:
            raise Rejected("too_large", f"a form has {size(largest)} at most", status=413)
    try:
        fields = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError:
        raise Rejected("bad_form", "the form cannot be read") from None
    return QueryParams(fields)


async def asset(request: Request) -> Response:
    """`GET /assets/{name}`: of one version for ever, since the address names it."""
    name = request.path_params["name"]
    if name not in ASSET_TYPES:
        return Response(status_code=404)
    content, version = _asset(name)
    lasting = request.query_params.get("v") == version
    cache_control = "public, max-age=31536000, immutable" if lasting else "no-cache"
    return Response(content, headers={"content-type": ASSET_TYPES[name], "cache-control": cache_control})


@cache
def _asset(name: str) -> tuple[bytes, str]:
    content = (ASSETS / name).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:12]


def asset_url(name: str) -> str:
    """Where a page finds an asset."""
    return f"/assets/{name}?v={_asset(name)[1]}"


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415  only pages need it

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(asset_url=asset_url)
    filters = (size, number, seconds, ago, moment, pretty, web_url, query, thumb)
    environment.filters.update({function.__name__: function for function in filters})
    return environment


def size(count: float | None) -> str:
    """Bytes for people: `542 B`, `12.3 kB`."""
    number = float(count or 0)
    for unit in ("B", "kB", "MB"):
        if number < _THOUSAND:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= _THOUSAND
    return f"{number:.1f} GB"


def number(count: float | None) -> str:
    """A count with a thin space between thousands."""
    return f"{count or 0:,.0f}".replace(",", "\u202f")


def seconds(span: float | None) -> str:
    """A length of time in at most two units: `0.4 s`, `12 s`, `3 min 5 s`, `2 h 4 min`, `3 d 2 h`."""
    if span is None:
        return "-"
    if span < 10:  # noqa: PLR2004
        return f"{max(span, 0):.1f} s"
    whole = round(span)
    for unit, name, smaller, its_name in (
        (_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min"), (_MINUTE, "min", 1, "s"),
    ):  # fmt: skip
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name}" + (f" {rest} {its_name}" if rest else "")
    return f"{whole} s"


def ago(when: datetime | str | None, now: datetime) -> str:
    """`just now`, `5 min ago`, `in 3 h`, `yesterday`'s date once it is more than a month."""
    when = _moment(when)
    if when is None:
        return "-"
    span = (now - when).total_seconds()
    if abs(span) < 5:  # noqa: PLR2004
        return "just now"
    if abs(span) > 30 * _DAY:
        return when.strftime("%-d %b %Y")
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min"), (1, "s")):
        if abs(span) >= unit:
            text = f"{int(abs(span) // unit)} {name}"
            return f"{text} ago" if span > 0 else f"in {text}"
    return "just now"


def moment(when: datetime | str | None) -> str:
    """The exact time, for machines and for who hovers."""
    found = _moment(when)
    return found.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z") if found else ""


def _moment(when: datetime | str | None) -> datetime | None:
    if isinstance(when, str):
        try:
            when = datetime.fromisoformat(when)
        except ValueError:
            return None
    return when


def pretty(value: Any) -> str:
    """JSON for people; a text as it is."""
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


_WEB = re.compile(r"https?://", re.IGNORECASE)


def web_url(text: Any) -> str | None:
    """The text if it is a URL that a browser may be sent to; None for `javascript:` and the like."""
    if not isinstance(text, str) or not _WEB.match(text):
        return None
    try:
        return text if urlsplit(text).hostname else None
    except ValueError:
        return None


def query(values: Mapping[str, Any], **changes: Any) -> str:
    """The query of a link to the same view with other parameters; what is empty or None falls away."""
    kept = {name: value for name, value in {**values, **changes}.items() if value not in (None, "", False)}
    return f"?{urlencode(kept)}" if kept else "?"


def thumb(one: Any) -> str:
    """Where the small picture of a summary is."""
    return f"/thumbs/{Kind(one.kind).folder}/{one.id}/{quote(one.picture.name)}"
