"""How this process uses memory."""

import ctypes
import os

LARGE_BLOCK = 1 << 20
"""Bytes from which a block goes back to the system as soon as it is free."""

_M_MMAP_THRESHOLD = -3
"""Of glibc's mallopt(3). Unless set, it grows to 32 MiB with the blocks that are freed, and they are kept."""


def give_back_large_blocks() -> None:
    """Keep no memory of large bodies and manifests once they are worked on; nothing where that cannot be set.

    `MALLOC_MMAP_THRESHOLD_` of the environment counts more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK)
