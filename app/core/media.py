"""Which type a file has: the closed table of types that Replicate's models produce.

A type is named by its extension, in lower case, without a dot. Whoever asks for the type of a file asks here,
so that a name on disk, a `Content-Type` and what a browser may show never disagree.
"""

from typing import Final
from urllib.parse import unquote

from app.core.content import detect

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
    "psd": "image/vnd.adobe.photoshop",
    "exr": "image/x-exr",
    "hdr": "image/vnd.radiance",
    # video
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "webm": "video/webm",
    "mkv": "video/matroska",
    "avi": "video/x-msvideo",
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
    "html": "text/html",
    "xml": "application/xml",
    "pdf": "application/pdf",
    "docx": f"{_OFFICE}.wordprocessingml.document",
    "xlsx": f"{_OFFICE}.spreadsheetml.sheet",
    "pptx": f"{_OFFICE}.presentationml.presentation",
    "epub": "application/epub+zip",
    # three dimensions
    "glb": "model/gltf-binary",
    "gltf": "model/gltf+json",
    "obj": "model/obj",
    "mtl": "model/mtl",
    "stl": "model/stl",
    "ply": "model/ply",
    "3mf": "model/3mf",
    "usdz": "model/vnd.usdz+zip",
    "fbx": _OCTETS,
    "splat": _OCTETS,
    # arrays and weights
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
    "yml": "yaml",
}

# What the bytes say, and the types that are such files inside: there the URL knows better.
_MADE_OF: Final = {
    "zip": frozenset({"npz", "pt", "pth", "ckpt", "docx", "xlsx", "pptx", "epub", "3mf", "usdz"}),
    "gz": frozenset({"tgz"}),
    "mp4": frozenset({"m4a"}),
    "ogg": frozenset({"opus"}),
    "xml": frozenset({"svg", "html"}),
    "html": frozenset({"md"}),
    "json": frozenset({"gltf", "jsonl", "txt", "md", "csv", "tsv", "yaml"}),
}

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
    "application/ogg": "ogg",
    "application/x-gzip": "gz",
    "application/x-zip-compressed": "zip",
    "application/x-ndjson": "jsonl",
    "application/x-yaml": "yaml",
    "application/xhtml+xml": "html",
    "text/xml": "xml",
    "text/json": "json",
}
# The first extension of a type stands for it.
_EXTENSIONS: Final = {media: extension for extension, media in reversed(MEDIA_TYPES.items())} | _ALSO_CALLED

_SHOWN: Final = ("image/", "video/", "audio/")


def extension(head: bytes, *, url_path: str = "") -> str:
    """The extension to store a file under: always one of `MEDIA_TYPES`, `bin` when nothing tells more.

    `head` is at least the first 512 bytes, or all of a shorter file. The content decides (an error page in
    HTML named `.png` is `html`). `url_path`, a path or whole URL, decides where the content has no signature,
    and among the types that share one (`npz` and `pt` are zip). Never raises.
    """
    named, found = _named(url_path), detect(head)
    if found is None:
        return named or UNKNOWN
    return named if named and named in _MADE_OF.get(found, ()) else found


def media_type(extension: str) -> str:
    """The `Content-Type` for an extension; octets for one that the table does not have."""
    return MEDIA_TYPES.get(extension, _OCTETS)


def extension_for_media_type(media_type: str) -> str | None:
    """The extension for the type of a `data:` URI or a `Content-Type`; its parameters and case do not matter.

    None for a type that the table does not have. Wrong types that models write (`image/jpg`) are understood.
    """
    essence, _, _ = media_type.partition(";")
    return _EXTENSIONS.get(essence.strip().lower())


def is_inline_safe(extension: str) -> bool:
    """Whether a browser may show it in our origin: images that cannot carry a script, video, audio, `txt`.

    False for everything else, and for what the table does not have.
    """
    return extension == "txt" or (extension != "svg" and media_type(extension).startswith(_SHOWN))


def _named(url_path: str) -> str | None:
    """The extension that a path or URL ends with, if the table has it."""
    path = url_path.partition("#")[0].partition("?")[0]
    _, dot, ending = unquote(path.rpartition("/")[2]).rpartition(".")
    ending = ending.lower()
    known = _SPELLINGS.get(ending, ending)
    return known if dot and known in MEDIA_TYPES else None
