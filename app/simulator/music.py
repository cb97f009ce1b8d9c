"""Music of the simulator: a few seconds of plucked strings, the same for the same words."""

import io
import math
import wave
from array import array
from functools import lru_cache
from random import Random

RATE = 11025
_SCALE = (0, 3, 5, 7, 10, 12, 15)
"""Half-tones of a pentatonic scale: whatever follows whatever, it sounds well."""


@lru_cache(maxsize=8)
def samples(text: str, *, base: float = 220.0, seconds: float = 4.0) -> "array[int]":
    """A melody around `base` hertz, four notes a second: numbers of 16 bits, `RATE` of them a second."""
    chance = Random(text)  # noqa: S311 - the same music again is what is wanted
    note, count = RATE // 4, int(RATE * seconds)
    heard = [0.0] * (count + 2 * note)
    place = chance.randrange(len(_SCALE))
    for start in range(0, max(1, count - note), note):
        place = min(len(_SCALE) - 1, max(0, place + chance.choice((-2, -1, 1, 2))))
        low = start % (4 * note) == 0
        turn = math.tau * base * 2 ** ((_SCALE[place] - 12 * low) / 12) / RATE
        for at in range(2 * note if low else note * 3 // 2):
            # It swells within 4 ms, so that it does not click.
            loud = 9000 * min(at / 40, math.exp(-4 * at / note))
            heard[start + at] += loud * (math.sin(turn * at) + 0.3 * math.sin(2 * turn * at))
    return array("h", (max(-32768, min(32767, int(value))) for value in heard[:count]))


def wav(sound: "array[int]") -> bytes:
    """A mono file of it."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(sound.tobytes())
    return target.getvalue()
