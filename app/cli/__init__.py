"""The command `outkeep`: the third composition root."""

from app.cli.root import main

__all__ = ["main"]
