"""How many files and connections this process may have open."""

import resource
from contextlib import suppress


def open_more_files() -> int:
    """Raise the soft limit, often 1,024 for the sake of programs of old, to the hard one; the limit then."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS says that there is no limit, and refuses that
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20
