"""The program that makes one thumbnail: a picture comes in on standard input, WebP goes out.

A stranger chose the bytes, and decoders have faults. So it runs as a process of its own, without environment,
and limits itself before it reads anything. It exits with 3 for what is no picture that it takes. Nothing of
ours is imported here.
"""

import io
import resource
import sys

SIDE = 480
"""Pixels of a thumbnail, in its longer direction."""

MOST_BYTES = 32 << 20
MOST_PIXELS = 40_000_000
MEMORY = 512 << 20
CPU_SECONDS = 10
MOST_WRITTEN = 1 << 20
REFUSED = 3

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF")
_AS_THEY_ARE = frozenset({"L", "RGB", "RGBA"})


def _limit() -> None:
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, MOST_WRITTEN),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def main() -> int:
    """The exit code."""
    _limit()
    from PIL import Image, ImageOps  # noqa: PLC0415  under the limits

    Image.MAX_IMAGE_PIXELS = None  # ours is smaller, and no warning
    content = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        return REFUSED
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                return REFUSED
            picture.draft("RGB", (SIDE * 2, SIDE * 2))  # a JPEG is decoded no larger than needed
            shown: Image.Image = picture
            if picture.mode not in _AS_THEY_ARE:
                shown = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
            shown.thumbnail((SIDE, SIDE), reducing_gap=2.0)
            made = io.BytesIO()
            ImageOps.exif_transpose(shown).save(made, "WEBP", quality=80)
    except (OSError, ValueError, SyntaxError, MemoryError, EOFError, IndexError, OverflowError):
        return REFUSED
    sys.stdout.buffer.write(made.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
