"""Which type a file has: the closed table of types that Replicate's models produce.

A type is named by its extension, in lower case, without a dot. Whoever asks for the type of a file asks here,
so that a name on disk, a `Content-Type` and what a browser may show never disagree.
"""

import re
from typing import Final
from urllib.parse import unquote

from app.core.content import also, detect

UNKNOWN: Final = "bin"

_OCTETS: Final = "application/octet-stream"
_OFFICE: Final = "application/vnd.openxmlformats-officedocument"

MEDIA_TYPES: Final[dict[str, str]] = {
    UNKNOWN: _OCTETS,
    # images
    "png": "image/png",
    "webp": "image/webp",
    "jpg": "image/jpeg",
    "gif": "image/gif",
    "avif": "image/avif",
    "bmp": "image/bmp",
    "tiff": "image/tiff",
    "ico": "image/vnd.microsoft.icon",
    "heic": "image/heic",
    "svg": "image/svg+xml",
    "jxl": "image/jxl",
    "psd": "image/vnd.adobe.photoshop",
    "exr": "image/x-exr",
    "hdr": "image/vnd.radiance",
    # video
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "webm": "video/webm",
    "mkv": "video/matroska",
    "avi": "video/x-msvideo",
    "mpg": "video/mpeg",
    "m3u8": "application/vnd.apple.mpegurl",
    # audio
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "opus": "audio/opus",
    "m4a": "audio/mp4",
    "aac": "audio/aac",
    "aiff": "audio/aiff",
    "mid": "audio/midi",
    "pcm": "audio/pcm",
    "raw": _OCTETS,
    # archives
    "zip": "application/zip",
    "gz": "application/gzip",
    "tgz": "application/gzip",
    "tar": "application/x-tar",
    "7z": "application/x-7z-compressed",
    "xz": "application/x-xz",
    "zst": "application/zstd",
    "bz2": "application/x-bzip2",
    # text
    "txt": "text/plain",
    "md": "text/markdown",
    "csv": "text/csv",
    "tsv": "text/tab-separated-values",
    "json": "application/json",
    "jsonl": "application/jsonl",
    "yaml": "application/yaml",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
    "ass": "text/x-ssa",
    "lrc": "application/x-lrc",
    "log": "text/plain",
    "py": "text/x-python",
    "js": "text/javascript",
    "rtf": "application/rtf",
    "html": "text/html",
    "xml": "application/xml",
    "pdf": "application/pdf",
    "docx": f"{_OFFICE}.wordprocessingml.document",
    "xlsx": f"{_OFFICE}.spreadsheetml.sheet",
    "pptx": f"{_OFFICE}.presentationml.presentation",
    "odt": "application/vnd.oasis.opendocument.text",
    "ods": "application/vnd.oasis.opendocument.spreadsheet",
    "odp": "application/vnd.oasis.opendocument.presentation",
    "epub": "application/epub+zip",
    # fonts
    "ttf": "font/ttf",
    "otf": "font/otf",
    "woff": "font/woff",
    "woff2": "font/woff2",
    # three dimensions
    "glb": "model/gltf-binary",
    "gltf": "model/gltf+json",
    "obj": "model/obj",
    "mtl": "model/mtl",
    "stl": "model/stl",
    "ply": "model/ply",
    "3mf": "model/3mf",
    "usdz": "model/vnd.usdz+zip",
    "vrm": "model/gltf-binary",
    "blend": "application/x-blender",
    "dxf": "application/dxf",
    "dcm": "application/dicom",
    "fbx": _OCTETS,
    "splat": _OCTETS,
    # arrays and weights
    "parquet": "application/vnd.apache.parquet",
    "npy": _OCTETS,
    "npz": _OCTETS,
    "safetensors": _OCTETS,
    "pt": _OCTETS,
    "pth": _OCTETS,
    "ckpt": _OCTETS,
    "pkl": _OCTETS,
    "onnx": _OCTETS,
    "gguf": _OCTETS,
}
"""Extension → media type."""

_SPELLINGS: Final = {
    "jpeg": "jpg",
    "jpe": "jpg",
    "jfif": "jpg",
    "tif": "tiff",
    "heif": "heic",
    "m4v": "mp4",
    "oga": "ogg",
    "aif": "aiff",
    "midi": "mid",
    "gzip": "gz",
    "text": "txt",
    "markdown": "md",
    "htm": "html",
    "xhtml": "html",
    "xht": "html",
    "mpeg": "mpg",
    "dicom": "dcm",
    "ssa": "ass",
    "mjs": "js",
    "ndjson": "jsonl",
    "yml": "yaml",
}

# What the bytes say, and the types that are such files inside: there the URL knows better.
_MADE_OF: Final = {
    "zip": frozenset(
        {
            *("npz", "pt", "pth", "ckpt", "3mf", "usdz"),
            *("docx", "xlsx", "pptx", "odt", "ods", "odp", "epub"),
        }
    ),
    "gz": frozenset({"tgz", "blend"}),
    "zst": frozenset({"blend"}),
    "glb": frozenset({"vrm"}),
    "mp4": frozenset({"m4a"}),
    "ogg": frozenset({"opus"}),
    "xml": frozenset({"svg", "html"}),
    "html": frozenset({"md"}),
    "json": frozenset({"gltf", "jsonl", "txt", "md", "csv", "tsv", "yaml", "log", "lrc", "py", "js"}),
}

_TEXTS: Final = frozenset(
    {
        *("txt", "md", "csv", "tsv", "json", "jsonl", "yaml", "srt", "vtt", "html", "xml"),
        *("ass", "lrc", "log", "py", "js", "rtf", "m3u8", "obj", "mtl"),
    }
)
"""Types that people write and read, in whose place a page may stand."""

_ALSO_CALLED: Final = {
    "image/jpg": "jpg",
    "image/pjpeg": "jpg",
    "image/x-png": "png",
    "image/x-ms-bmp": "bmp",
    "image/x-icon": "ico",
    "image/heif": "heic",
    "video/x-matroska": "mkv",
    "video/avi": "avi",
    "video/x-m4v": "mp4",
    "audio/mp3": "mp3",
    "audio/x-wav": "wav",
    "audio/wave": "wav",
    "audio/vnd.wave": "wav",
    "audio/x-flac": "flac",
    "audio/m4a": "m4a",
    "audio/x-m4a": "m4a",
    "audio/x-aac": "aac",
    "audio/x-aiff": "aiff",
    "audio/x-midi": "mid",
    "application/ogg": "ogg",
    "application/x-gzip": "gz",
    "application/x-zip-compressed": "zip",
    "application/x-ndjson": "jsonl",
    "application/x-yaml": "yaml",
    "application/xhtml+xml": "html",
    "text/xml": "xml",
    "text/json": "json",
    "text/srt": "srt",
    "text/x-srt": "srt",
    "text/x-subrip": "srt",
    "application/x-srt": "srt",
    "text/subrip": "srt",
    "application/srt": "srt",
    "application/csv": "csv",
    "text/x-csv": "csv",
    "text/comma-separated-values": "csv",
    "text/x-log": "log",
    "text/lrc": "lrc",
    "text/x-lrc": "lrc",
    "text/x-markdown": "md",
    "text/yaml": "yaml",
    "text/x-ass": "ass",
    "text/rtf": "rtf",
    "application/javascript": "js",
    "application/x-javascript": "js",
    "text/x-script.python": "py",
    "application/x-python": "py",
    "application/x-mpegurl": "m3u8",
    "audio/mpegurl": "m3u8",
    "audio/x-mpegurl": "m3u8",
    "audio/l16": "pcm",
    "audio/x-pcm": "pcm",
    "application/x-parquet": "parquet",
    "application/x-font-ttf": "ttf",
    "application/x-font-otf": "otf",
    "application/x-font-woff": "woff",
    "application/font-woff": "woff",
    "application/font-woff2": "woff2",
    "model/x.stl-binary": "stl",
    "application/sla": "stl",
    "application/vnd.ms-pki.stl": "stl",
    "image/vnd.dxf": "dxf",
    "model/vrm": "vrm",
    "application/x-tgif": "obj",
    "text/obj": "obj",
    "application/x-tgz": "tgz",
    "application/x-compressed-tar": "tgz",
}
# The first extension of a type stands for it.
_EXTENSIONS: Final = {media: extension for extension, media in reversed(MEDIA_TYPES.items())} | _ALSO_CALLED

_FILE_NAME: Final = re.compile(
    r"""filename(?:\*\s*=\s*"?[\w-]*'[^']*'([^;\s]*)|\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;]*)))""", re.IGNORECASE
)
"""Of a `Content-Disposition`: the extended form, the quoted, or the bare one."""

_AROUND_NAMES: Final = " \t\"'.“”"
"""What stands around a name, though it is no part of it."""

_SHOWN: Final = ("image/", "video/", "audio/")


def extension(head: bytes, *, url_path: str = "", declared: str | None = None) -> str:
    """The extension to store a file under: always one of `MEDIA_TYPES`, `bin` when nothing tells more.

    `head` is at least the first 512 bytes, or all of a shorter file. The content decides (an error page in
    HTML named `.png` is `html`). `url_path`, a path or whole URL, decides where the content has no signature,
    and among the types that share one (`npz` and `pt` are zip); where it tells nothing, `declared` does, an
    extension of the table. Never raises.
    """
    named, found = _named(url_path), detect(head)
    if found is not None:
        possible = _MADE_OF.get(found, frozenset()) | also(head)
        return next((name for name in (named, declared) if name in possible), found)
    if named and named != UNKNOWN:
        return named
    is_binary = b"\0" in head  # many servers call text what they do not know
    return declared if declared and not (is_binary and declared in _TEXTS) else UNKNOWN


def declared(content_type: str | None, disposition: str | None, url: str = "") -> str | None:
    """The extension that an answer declares, of the table but not `bin`.

    `disposition` is its `Content-Disposition`, `url` its own address, after all redirects: a name tells more
    than a type.
    """
    found = sorted(_FILE_NAME.findall(disposition or ""), key=lambda forms: not forms[0])
    names = [unquote(star or quoted or plain).strip(_AROUND_NAMES) for star, quoted, plain in found]
    told = [*map(_named_file, names), _named(url), extension_for_media_type(content_type or "")]
    return next((name for name in told if name and name != UNKNOWN), None)


def is_never_a_page(url_path: str) -> bool:
    """Whether a path or URL is named like a picture, sound, film, archive, weights and the like."""
    named = _named(url_path)
    return named is not None and named not in _TEXTS


def media_type(extension: str) -> str:
    """The `Content-Type` for an extension; octets for one that the table does not have."""
    return MEDIA_TYPES.get(extension, _OCTETS)


def extension_for_media_type(media_type: str) -> str | None:
    """The extension for the type of a `data:` URI or a `Content-Type`; its parameters and case do not matter.

    None for a type that the table does not have. Wrong types that models write (`image/jpg`) are understood.
    """
    essence, _, _ = media_type.partition(";")
    return _EXTENSIONS.get(essence.strip().lower())


def has_known_extension(url_path: str) -> bool:
    """Whether a path ends in an extension of the table, so that it names a file."""
    return _named(url_path) is not None


def packed(encoding: str) -> str:
    """The extension of a file whose bytes have these content codings, as it would be without that header."""
    last = encoding.rpartition(",")[2].strip()
    return {"gzip": "gz", "zstd": "zst"}.get(last, last)


def is_inline_safe(extension: str) -> bool:
    """Whether a browser may show it in our origin: images that cannot carry a script, video, audio, `txt`.

    False for everything else, and for what the table does not have.
    """
    return extension == "txt" or (extension != "svg" and media_type(extension).startswith(_SHOWN))


def _named(url_path: str) -> str | None:
    """The extension that a path or URL ends with, if the table has it."""
    path = url_path.partition("#")[0].partition("?")[0]
    return _named_file(unquote(path.rpartition("/")[2]))


def _named_file(name: str) -> str | None:
    """The same of the name of a file."""
    _, dot, ending = name.rpartition(".")
    ending = ending.lower()
    known = _SPELLINGS.get(ending, ending)
    return known if dot and known in MEDIA_TYPES else None
