"""The command `outkeep`: the third composition root."""

import os

from app.telemetry.interrupts import fatal_interrupts


def main() -> None:
    """Entry point, as `app.cli.root` has it."""
    os.umask(0o077)  # until the settings are read
    with fatal_interrupts():
        from app.cli import root
    root.main()
