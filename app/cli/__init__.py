"""The command `outkeep`: the third composition root.

The way in is `root`, which loads the module of a command only when that command is called. A command reads
arguments, calls one of the packages below and prints: rules and repairs do not belong here, and no error
reaches a person as a traceback.
"""

import os

from app.telemetry.interrupts import fatal_interrupts


def main() -> None:
    """Entry point, as `app.cli.root` has it."""
    os.umask(0o077)  # until the settings are read
    with fatal_interrupts():
        from app.cli import root
    root.main()
