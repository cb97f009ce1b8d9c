"""Pictures of the simulator, made by arithmetic: the same words make the same bytes.

A picture is rows of places in a palette. Rows are added and looked up whole, which makes Python quick enough.
"""

import math
import re
import struct
import zlib
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from random import Random

SIDE = 512
"""Pixels of a picture in each direction."""

_MOODS = {
    "night moon stars dark": "0b1026 1b2a5a 3f4f8f 8a86c0 e9e4f5",
    "dusk sunset evening autumn fire": "2b1b3d 6c2a57 c8485b f08a4b ffd98a",
    "winter snow ice cold": "2a4858 4f8296 9cc4cf dcecf0 ffffff",
    "sea ocean river water": "05293d 0b5c73 2a9d8f 9bd8c2 fdf3d8",
    "forest spring green garden": "10231a 1f5138 4f8f4a b5c95a f7f0bd",
    "summer day sun desert": "5b2333 b5533c e9a15b f6d99b fff8e7",
    "": "1d1135 4b2a86 b23f8f ff7f6e ffe0a3",
}
"""Words of a prompt → colours from dark to light; any other prompt takes some by chance."""

_SUN = b"\xd7"


def palette(text: str, chance: Random) -> bytes:
    """256 colours of three bytes, from dark to light."""
    words = set(re.findall("[a-z]+", text.lower()))
    fitting = [shades for names, shades in _MOODS.items() if words & set(names.split())]
    stops = [bytes.fromhex(shade) for shade in chance.choice(fitting or list(_MOODS.values())).split()]
    ramp = bytearray()
    for step in range(256):
        place, part = divmod(step * (len(stops) - 1) / 256, 1)
        low, high = stops[int(place) : int(place) + 2]
        ramp += bytes(round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return bytes(ramp)


def _line(chance: Random, length: int, depth: float, *, turns: float, waves: int = 4) -> list[float]:
    """A smooth line from 0 to `depth`; its slowest wave makes about so many `turns`."""
    parts = [
        (turns * 1.8**n * chance.uniform(0.8, 1.2) * math.tau / length, chance.uniform(0, math.tau), 0.5**n)
        for n in range(waves)
    ]
    whole = 2 * sum(height for _, _, height in parts)
    return [
        depth * (0.5 + sum(height * math.sin(fast * at + start) for fast, start, height in parts) / whole)
        for at in range(length)
    ]


def _bytes(values: Iterable[float]) -> bytes:
    return bytes(min(255, max(0, int(value))) for value in values)


def _fine(values: Iterable[float]) -> bytes:
    """Values from 0 to 255 with their fraction, two bytes each."""
    return array("H", (min(65535, max(0, int(256 * value))) for value in values)).tobytes()


def _sum(*rows: bytes) -> bytes:
    """Fine rows added value by value, without the fraction; no sum may exceed 255."""
    whole = sum(int.from_bytes(row, "little") for row in rows)
    return whole.to_bytes(len(rows[0]), "little")[1::2]


def mountains(chance: Random, side: int) -> list[bytes]:
    """Ridges, each nearer one darker, before a sky with its sun."""
    x_sun, y_sun, radius = chance.uniform(0.2, 0.8) * side, chance.uniform(0.2, 0.42) * side, side / 11
    # The square of a distance is the sum of a part by column and one by row, and its light is looked up.
    squares = _fine(127 * (off / side) ** 2 for off in range(side))
    by_row = b"".join(squares[2 * off : 2 * off + 2] for off in (int(abs(y - y_sun)) for y in range(side)))
    glow = _bytes(131 + 62 * math.exp(-at / 9) for at in range(256))
    ridges = []
    for near in range(6):
        line = _line(chance, side, side * (0.2 - 0.018 * near), turns=1.3 + 0.35 * near, waves=6)
        shade = _bytes(122 - 23 * near + 30 * min(1.0, y / side * 2.2) for y in range(side))
        ridges.append(([int(side * (0.4 + 0.105 * near) + value) for value in line], shade))
    columns = []
    for x in range(side):
        off = int(abs(x - x_sun))
        column = _sum(by_row, squares[2 * off : 2 * off + 2] * side).translate(glow)
        if off < radius:
            half = math.sqrt(radius**2 - off**2)
            top, end = int(y_sun - half), int(y_sun + half)
            column = column[:top] + _SUN * (end - top) + column[end:]
        for tops, shade in ridges:
            column = (column[: tops[x]] + shade)[:side]
        columns.append(column)
    flat = b"".join(columns)
    return [flat[y::side] for y in range(side)]


def _heights(chance: Random, side: int) -> list[bytes]:
    """A landscape from above: heights from 0 to 250."""
    along, down = (_fine(_line(chance, side, 65, turns=1.5)) for _ in range(2))
    rising, falling = (_fine(_line(chance, 2 * side, 60, turns=2)) for _ in range(2))
    return [
        _sum(
            along,
            down[2 * y : 2 * y + 2] * side,
            rising[2 * y : 2 * (y + side)],
            falling[2 * (side - y) : 2 * (2 * side - y)],
        )
        for y in range(side)
    ]


def _contours(chance: Random, side: int) -> list[bytes]:
    """A map, with lines of the same height."""
    step = chance.randint(11, 17)
    table = _bytes(15 if at % step == 0 else 35 + (at - at % step) * 0.88 for at in range(256))
    return [row.translate(table) for row in _heights(chance, side)]


def _ribbons(chance: Random, side: int) -> list[bytes]:
    """Tiles with two arcs each, turned by chance, so that the arcs join."""
    tile = side // 8
    half, thick = tile / 2, tile / 7

    def arc(x: int, y: int) -> int:
        off = min(abs(math.hypot(x, y) - half), abs(math.hypot(tile - 1 - x, tile - 1 - y) - half))
        return 235 if off < thick / 2 else 20 if off < thick else 0

    straight = [bytes(arc(x, y) for x in range(tile)) for y in range(tile)]
    kinds = (straight, [row[::-1] for row in straight])
    ground = _bytes(60 + value for value in _line(chance, 2 * side, 110, turns=1.5))
    rows = []
    for top in range(0, side, tile):
        chosen = [chance.choice(kinds) for _ in range(0, side, tile)]
        for y in range(tile):
            above = b"".join(kind[y] for kind in chosen)
            below = ground[top + y : top + y + side]
            rows.append(bytes(a or b for a, b in zip(above, below, strict=False)))
    return rows


_STYLES = (mountains, mountains, _contours, _ribbons)


@lru_cache(maxsize=64)
def png(text: str, *, side: int = SIDE) -> bytes:
    """A square picture of `side` pixels, a multiple of 8; its colours follow words of `text`."""
    chance = Random(text)  # noqa: S311 - the same picture again is what is wanted
    colours = palette(text, chance)
    return _png(colours, [chance.choice(_STYLES)(chance, side)])


@lru_cache(maxsize=8)
def animation(text: str, *, side: int = 240) -> bytes:
    """An animated PNG that flows for ever, of 16 frames and `side` pixels each way."""
    chance = Random(text)  # noqa: S311
    colours, heights = palette(text, chance), _heights(chance, side)
    bands = [127 + 120 * math.sin(place * math.tau / 16) for place in range(16)]
    tables = [_bytes(bands[(height // 5 + frame) % 16] for height in range(256)) for frame in range(16)]
    return _png(colours, [[row.translate(table) for row in heights] for table in tables])


def waveform(samples: Sequence[int], text: str, *, width: int = 640, height: int = 160) -> bytes:
    """A picture of a sound: how loud it is along its time."""
    colours = palette(text, Random(text))  # noqa: S311
    step, loudest = max(1, len(samples) // width), max(map(abs, samples), default=1) or 1
    columns = []
    for x in range(width):
        half = int(height * 0.46 * max(map(abs, samples[x * step : x * step + step]), default=0) / loudest)
        rest = height // 2 - half
        # Bars of three columns, and a gap of one.
        columns.append(
            b"\x18" * height if x % 4 == 0 else b"\x18" * rest + b"\xc8" * 2 * half + b"\x18" * rest
        )
    flat = b"".join(columns)
    return _png(colours, [[flat[y::height] for y in range(height)]])


def _png(colours: bytes, frames: Sequence[Sequence[bytes]]) -> bytes:
    """One picture, or an animation of ten frames a second."""
    width, height, number = len(frames[0][0]), len(frames[0]), 0
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header), _chunk(b"PLTE", colours)]
    if len(frames) > 1:
        chunks.append(_chunk(b"acTL", struct.pack(">II", len(frames), 0)))
    for rows in frames:
        data = zlib.compress(b"".join(b"\0" + row for row in rows))
        if len(frames) > 1:
            chunks.append(
                _chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, 0, 0, 1, 10, 0, 0))
            )
        if rows is frames[0]:
            chunks.append(_chunk(b"IDAT", data))
            number += 1
        else:
            chunks.append(_chunk(b"fdAT", struct.pack(">I", number + 1) + data))
            number += 2
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
