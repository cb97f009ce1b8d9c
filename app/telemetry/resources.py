"""What this process takes of its host: memory, and files and connections that it may have open."""

import ctypes
import gc
import os
import resource

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


def look_through_less() -> None:
    """Spare the collector of garbage what is loaded by now, and let it run less often: a twelfth of all CPU.

    What a delivery leaves behind goes by itself: it holds no circles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000, 20, 20)


def open_more_files() -> int:
    """Raise the soft limit, often 1,024 for the sake of programs of old, to the hard one; the limit then."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20
