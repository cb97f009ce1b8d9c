"""A short film of the simulator: H.264 in MP4 that browsers play, made by arithmetic.

Blocks of 16 by 16 pixels that change are written as they are (I_PCM) and the others are skipped, so that
nothing has to be transformed or predicted. The fields are those of ITU-T H.264 and ISO/IEC 14496-12.
"""

import math
import re
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from random import Random

from app.simulator.pictures import mountains, palette

WIDTH, HEIGHT = 160, 96
RATE = 12
"""Pictures a second."""

COUNT = 48
_KEY_EVERY = 24
"""Pictures from one that stands by itself to the next."""

_BALL = b"\xf0"
_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


@lru_cache(maxsize=8)
def mp4(text: str) -> bytes:
    """Four seconds of a ball before mountains; the colours follow words of `text`."""
    chance = Random(text)  # noqa: S311 - the same film again is what is wanted
    planes = _planes(palette(text, chance))
    units: list[bytes] = []
    before: list[bytes] = []
    for number, rows in enumerate(_pictures(chance)):
        blocks, since_key = _blocks(rows, planes), number % _KEY_EVERY
        changed = [old != new for old, new in zip(before, blocks, strict=True)] if since_key else []
        units.append(_slice(blocks, changed, since_key))
        before = blocks
    return _file([_ints(len(unit)) + unit for unit in units])


def _pictures(chance: Random) -> Iterator[list[bytes]]:
    ground = mountains(chance, WIDTH)[WIDTH - HEIGHT >> 1 :][:HEIGHT]
    radius = 10
    for number in range(COUNT):
        turn = math.tau * number / COUNT
        x, y = round(WIDTH / 2 + 60 * math.cos(turn)), round(HEIGHT / 2 - 34 * math.sin(2 * turn))
        rows = list(ground)
        for at in range(y - radius, y + radius + 1):
            half = round(math.sqrt(radius**2 - (at - y) ** 2))
            rows[at] = rows[at][: x - half] + _BALL * 2 * half + rows[at][x + half :]
        yield rows


def _planes(colours: bytes) -> tuple[bytes, bytes, bytes]:
    """Brightness and both differences of each colour (BT.601)."""
    found = [tuple(colours[at : at + 3]) for at in range(0, len(colours), 3)]
    return (
        bytes(round(16 + 0.257 * red + 0.504 * green + 0.098 * blue) for red, green, blue in found),
        bytes(round(128 - 0.148 * red - 0.291 * green + 0.439 * blue) for red, green, blue in found),
        bytes(round(128 + 0.439 * red - 0.368 * green - 0.071 * blue) for red, green, blue in found),
    )


def _blocks(rows: Sequence[bytes], planes: tuple[bytes, bytes, bytes]) -> list[bytes]:
    luma, *chromas = planes
    return [
        b"".join(row[x : x + 16].translate(luma) for row in rows[y : y + 16])
        + b"".join(row[x : x + 16 : 2].translate(plane) for plane in chromas for row in rows[y : y + 16 : 2])
        for y in range(0, HEIGHT, 16)
        for x in range(0, WIDTH, 16)
    ]


def _codes(*numbers: int) -> str:
    """Exp-Golomb codes, as text of bits."""
    return "".join("0" * ((number + 1).bit_length() - 1) + f"{number + 1:b}" for number in numbers)


def _packed(bits: str) -> bytes:
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _unit(header: int, body: bytes) -> bytes:
    """A NAL unit: nothing in it may look like the beginning of one."""
    return bytes([header]) + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", body)


def _slice(blocks: Sequence[bytes], changed: Sequence[bool], since_key: int) -> bytes:
    """One picture: all of its blocks, or those that have changed since the one before."""
    # First block, type of the slice, parameters; number; what is not used; no filter between blocks.
    bits = f"{_codes(0, 5 if since_key else 7, 0)}{since_key % 16:04b}"
    bits += ("000" if since_key else _codes(0) + "00") + _codes(0, 1)
    body, skipped = b"", 0
    for place, block in enumerate(blocks):
        if since_key and not changed[place]:
            skipped += 1
            continue
        body += _packed(bits + (_codes(skipped, 30) if since_key else _codes(25))) + block
        bits, skipped = "", 0
    if skipped:
        bits += _codes(skipped)
    return _unit(0x41 if since_key else 0x65, body + _packed(bits + "1"))


def _file(samples: Sequence[bytes]) -> bytes:
    sequence = _unit(
        0x67,
        bytes((66, 0xC0, 30))
        + _packed(_codes(0, 0, 2, 1) + "0" + _codes(WIDTH // 16 - 1, HEIGHT // 16 - 1) + "11001"),
    )
    picture = _unit(0x68, _packed(_codes(0, 0) + "00" + _codes(0, 0, 0) + "000" + _codes(0, 0, 0) + "1001"))
    described = _box(
        "avcC",
        bytes((1, 66, 0xC0, 30, 0xFF, 0xE1)),
        struct.pack(">H", len(sequence)) + sequence + b"\1" + struct.pack(">H", len(picture)) + picture,
    )
    entry = _box(
        "avc1",
        bytes(7) + b"\1" + bytes(16) + struct.pack(">HH", WIDTH, HEIGHT),
        _ints(0x480000, 0x480000, 0) + b"\0\1" + bytes(32) + b"\0\x18\xff\xff",
        described,
    )
    keys = range(1, len(samples) + 1, _KEY_EVERY)
    kind = _box("ftyp", b"isom", _ints(512), b"isomavc1")

    def index(first: int) -> bytes:
        table = _box(
            "stbl",
            _box("stsd", _ints(0, 1), entry),
            _box("stts", _ints(0, 1, len(samples), 1)),
            _box("stss", _ints(0, len(keys), *keys)),
            _box("stsc", _ints(0, 1, 1, len(samples), 1)),
            _box("stsz", _ints(0, 0, len(samples), *map(len, samples))),
            _box("stco", _ints(0, 1, first)),
        )
        here = _box("dinf", _box("dref", _ints(0, 1), _box("url ", _ints(1))))
        media = _box(
            "mdia",
            _box("mdhd", _ints(0, 0, 0, RATE, len(samples), 0x55C40000)),
            _box("hdlr", _ints(0, 0), b"vide", bytes(13)),
            _box("minf", _box("vmhd", _ints(1, 0, 0)), here, table),
        )
        shown = _ints(3, 0, 0, 1, 0, len(samples), 0, 0, 0, 0), _MATRIX, _ints(WIDTH << 16, HEIGHT << 16)
        general = _ints(0, 0, 0, RATE, len(samples), 0x10000, 0x1000000, 0, 0), _MATRIX, bytes(24), _ints(2)
        return _box("moov", _box("mvhd", *general), _box("trak", _box("tkhd", *shown), media))

    return kind + index(len(kind) + len(index(0)) + 8) + _box("mdat", *samples)


def _box(name: str, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return _ints(8 + len(body)) + name.encode() + body


def _ints(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)
