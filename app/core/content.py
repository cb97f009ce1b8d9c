"""What the first bytes of a file say that it is.

Signatures come from each format's specification; those of HTML from the WHATWG's "MIME Sniffing", without the
tags that prose and Markdown begin with. A signature is as long as it takes for ordinary text not to match.
"""

import re
from typing import Final

HEAD: Final = 512
"""How many of the first bytes a caller must give, if the file has as many: tar tells itself at 257."""

_LIMIT: Final = 4096


def _starts(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)


# First match wins. Tar leads, since it begins with the name of its first file, which can look like anything.
_BINARY: Final = tuple(
    (_starts(pattern), extension)
    for pattern, extension in (
        (rb".{257}ustar[\0 ]", "tar"),
        (rb"\x89PNG\r\n\x1a\n", "png"),
        (rb"\xff\xd8\xff", "jpg"),
        (rb"RIFF.{4}WEBP", "webp"),
        (rb"RIFF.{4}AVI ", "avi"),
        (rb"(?:RIFF|RF64|BW64).{4}WAVE", "wav"),
        (rb"GIF8[79]a", "gif"),
        # ISO media: a box `ftyp` with the main brand, a version, and the brands that it is compatible with.
        (rb"\0\0..ftypavi[fs]", "avif"),
        (rb"\0\0..ftyp(?:mif1|msf1|miaf).{4}(?:.{4}){0,12}?avi[fs]", "avif"),
        (rb"\0\0..ftyp(?:he[iv][cxms]|mif1|msf1)", "heic"),
        (rb"\0\0..ftyp(?:M4[ABP] |F4A )", "m4a"),
        (rb"\0\0\0\x0cJXL \r\n\x87\n", "jxl"),
        (rb"\xff\x0a[\0-\x7f]", "jxl"),  # a codestream by itself
        (rb"\0\0..ftypqt  ", "mov"),
        (rb"\0\0..ftyp[ -~]{4}", "mp4"),
        (rb"\0.{3}(?:moov|mdat|wide)", "mov"),  # QuickTime, older than `ftyp`
        (rb"\0\0\x01(?:\xba[\x21\x44]|\xb3)", "mpg"),  # a pack of a program stream, or a sequence of video
        # EBML: its element DocType, with a one-byte length.
        (rb"\x1a\x45\xdf\xa3.{0,80}?\x42\x82.webm", "webm"),
        (rb"\x1a\x45\xdf\xa3.{0,80}?\x42\x82.matroska", "mkv"),
        (rb"ID3[\x02-\x04]", "mp3"),
        # A frame header: layer III, a bit rate, one of three sample rates.
        (
            rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\x1b\x20-\x2b\x30-\x3b\x40-\x4b\x50-\x5b\x60-\x6b\x70-\x7b]",
            "mp3",
        ),
        (
            rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x80-\x8b\x90-\x9b\xa0-\xab\xb0-\xbb\xc0-\xcb\xd0-\xdb\xe0-\xeb]",
            "mp3",
        ),
        (rb"\xff[\xf0\xf1\xf8\xf9]", "aac"),
        (rb"fLaC[\0\x80]", "flac"),
        (rb"OggS\0", "ogg"),
        (rb"FORM.{4}AIF[FC]", "aiff"),
        (rb"MThd\0\0\0\x06", "mid"),
        (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "zip"),
        (rb"\x1f\x8b\x08", "gz"),
        (rb"7z\xbc\xaf\x27\x1c", "7z"),
        (rb"\xfd7zXZ\0", "xz"),
        (rb"\x28\xb5\x2f\xfd", "zst"),
        (rb"BZh[1-9]1AY&SY", "bz2"),
        (rb"glTF[\x01\x02]\0\0\0", "glb"),
        (rb"ply\r?\n", "ply"),
        (rb"Kaydara FBX Binary  \0", "fbx"),
        (rb"\x93NUMPY", "npy"),
        (rb"PAR1", "parquet"),
        (rb"BLENDER[-_0-9]", "blend"),
        (rb".{128}DICM", "dcm"),
        (rb"AutoCAD Binary DXF\r\n\x1a\0", "dxf"),
        (rb"wOFF(?:OTTO|true|\0\x01\0\0)", "woff"),
        (rb"wOF2(?:OTTO|ttcf|true|\0\x01\0\0)", "woff2"),
        (rb"OTTO\0[\x01-\x40]", "otf"),
        (rb"\0\x01\0\0\0[\x01-\x40](?:\0[\x10\x20\x40\x80]|[\x01-\x04]\0)\0[\0-\x06]", "ttf"),
        (rb".{4}\0{4}\{[\"}]", "safetensors"),  # the length of a JSON header, below 4 GiB, and the header
        (rb"GGUF[\x01-\x09]\0\0\0", "gguf"),
        (rb"II(?:\*\0|\+\0\x08\0)|MM(?:\0\*|\0\+\0\x08)", "tiff"),
        (rb"8BPS\0[\x01\x02]", "psd"),
        (rb"\x76\x2f\x31\x01", "exr"),
        (rb"#\?(?:RADIANCE|RGBE)\n", "hdr"),
        # The size of the second header, one of those that exist.
        (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "bmp"),
        # A count of images and the first entry: reserved byte, planes, bits per pixel.
        (rb"\0\0\x01\0[\x01-\xff]\0.{3}\0[\0\x01]\0[\0\x01\x04\x08\x10\x18\x20]\0", "ico"),
    )
)

_BLANK: Final = _starts(rb"(?:\xef\xbb\xbf)?\s*")
_PROLOGUE: Final = _starts(rb"(?:\s*(?:<\?.*?\?>|<!--.*?-->))*\s*")
_TEXT: Final = tuple(
    (_starts(pattern), extension)
    for pattern, extension in (
        (rb"%PDF-", "pdf"),
        (rb"WEBVTT(?:\s|\Z)", "vtt"),
        (rb"\{\\rtf1?[\s\\{}]", "rtf"),
        (rb"#EXTM3U(?:\s|\Z)", "m3u8"),
        (rb"\[Script Info\]\s", "ass"),
        (rb"\{.*\"asset\"\s*:\s*\{[^{}]*\"version\"\s*:\s*\"[12]\.\d\"", "gltf"),
        (rb"\{\s*(?:\"|\}\s*\Z)", "json"),
        (rb"\[\s*(?:[\[{\"]|\]\s*\Z|(?:-?\d[\d.eE+-]*|true|false|null)\s*(?:,|\]\s*\Z))", "json"),
    )
)
_MARKUP: Final = (
    (re.compile(rb"<(?:!doctype\s+)?svg[\s>]", re.IGNORECASE), "svg"),
    (
        re.compile(
            rb"<(?:!doctype\s+html|html|head|body|title|script|style|iframe|meta|h1|div|table)[\s/>]",
            re.IGNORECASE,
        ),
        "html",
    ),
)


_ID3: Final = _starts(rb"ID3[\x02-\x04].(.)([\0-\x7f])([\0-\x7f])([\0-\x7f])([\0-\x7f])")
_TAGGED: Final = frozenset({"flac", "aac"})
"""What may begin with an ID3 tag beside mp3."""
_FRAMED: Final = _starts(rb"\xff[\xe0-\xff]")
_HEADERLESS: Final = frozenset({"pcm", "raw", "splat"})
"""Mere numbers, which may begin like a frame of mp3 or aac."""


def detect(head: bytes) -> str | None:
    """The extension (lower case, no dot) for a file that begins with `head`, or None: nothing to go by.

    Give at least `HEAD` bytes, or all of a shorter file. Never raises.
    """
    head = head[:_LIMIT]
    tag = _end_of_tag(head)
    if tag and (behind := _first(_BINARY, head[tag:])) in _TAGGED:
        return behind
    text = head[_end(_BLANK, head) :]
    return _first(_BINARY, head) or _first(_TEXT, text) or _markup(text)


def also(head: bytes) -> frozenset[str]:
    """What a file may be as well, by its first bytes, as `detect` takes them: its name decides then."""
    if _end_of_tag(head) >= len(head) > 0:
        return _TAGGED
    return _HEADERLESS if _FRAMED.match(head) else frozenset()


def _end_of_tag(head: bytes) -> int:
    """Where an ID3 tag ends that stands before the sound itself; 0 when there is none."""
    tag = _ID3.match(head)
    if tag is None:
        return 0
    flags, *size = (part[0] for part in tag.groups())
    return (
        10
        + sum(byte << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=True))
        + (flags >> 4 & 1) * 10
    )


def _markup(text: bytes) -> str | None:
    """Comments and the XML declaration may stand before the first tag; the declaration alone makes XML."""
    tags = text[_end(_PROLOGUE, text) :]
    return _first(_MARKUP, tags) or ("xml" if text.startswith(b"<?xml") else None)


def _first(signatures: tuple[tuple[re.Pattern[bytes], str], ...], text: bytes) -> str | None:
    return next((extension for pattern, extension in signatures if pattern.match(text)), None)


def _end(pattern: re.Pattern[bytes], text: bytes) -> int:
    """Where a pattern that may be empty ends."""
    found = pattern.match(text)
    return found.end() if found else 0
