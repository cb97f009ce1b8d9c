"""How a stored file is presented over HTTP, from our server or straight from a bucket."""

from app.core import media
from app.core.names import TEXT_NAME

_SCRIPTS = frozenset({"js", "mjs", "css", "wasm"})
"""What a page takes for a part of itself."""


def presentation(name: str) -> dict[str, str]:
    """`Content-Type`, and `Content-Disposition` for what could run in a browser; `name` may hold folders."""
    file_name = name.rpartition("/")[2]
    extension = file_name.rpartition(".")[2]
    # Of the text that we wrote, and of JSON as such, it is known; a model's text may be in any.
    charset = "; charset=utf-8" if file_name == TEXT_NAME or extension == "json" else ""
    # A page of ours could be led to run a script: with `nosniff` browsers run none of another type.
    media_type = "application/octet-stream" if extension in _SCRIPTS else media.media_type(extension)
    headers = {"Content-Type": media_type + charset}
    if not media.is_inline_safe(extension):
        headers["Content-Disposition"] = f'attachment; filename="{file_name}"'
    return headers
