"""`python -m workers`, which is how `outkeep work` and `outkeep up` start a worker process."""

import os
import sys

from app.telemetry.interrupts import fatal_interrupts


def main() -> int:
    """The exit code."""
    os.umask(0o077)  # until the settings are read
    with fatal_interrupts():
        from workers.process import main as run
    return run()


if __name__ == "__main__":
    sys.exit(main())
