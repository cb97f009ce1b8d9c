"""Small real files, the same bytes for the same arguments: pictures, sounds, archives."""

import io
import math
import struct
import tarfile
import wave
import zipfile
import zlib
from collections.abc import Mapping
from hashlib import sha256

_SAMPLE_RATE = 8000


def png(text: str, *, side: int = 128) -> bytes:
    """A square RGB picture of `side` pixels: a gradient between two colours chosen by `text`."""
    digest = sha256(text.encode()).digest()
    left, right = digest[:3], digest[3:6]
    row = bytes(
        (left[channel] * (side - 1 - x) + right[channel] * x) // (side - 1)
        for x in range(side)
        for channel in range(3)
    )
    rows = b"".join(b"\0" + row for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows, 9)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def wav(frequency: float, *, seconds: float = 0.25) -> bytes:
    """A tone of `frequency` hertz: mono, 16 bits, 8 kHz."""
    count = int(_SAMPLE_RATE * seconds)
    turn = 2 * math.pi * frequency / _SAMPLE_RATE
    samples = (int(12000 * math.sin(turn * index)) for index in range(count))
    target = io.BytesIO()
    with wave.open(target, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(_SAMPLE_RATE)
        sound.writeframes(struct.pack(f"<{count}h", *samples))
    return target.getvalue()


def zip_archive(files: Mapping[str, bytes]) -> bytes:
    """A zip of name → content, dated 1980, so that the bytes never change."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return target.getvalue()


def tar_archive(files: Mapping[str, bytes]) -> bytes:
    """An uncompressed tar of name → content, dated 1970, so that the bytes never change."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()
