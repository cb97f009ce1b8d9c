"""The command `outkeep`: the third composition root."""

from app.interrupts import fatal_interrupts


def main() -> None:
    """Entry point, as `app.cli.root` has it."""
    with fatal_interrupts():
        from app.cli import root
    root.main()
