"""The command `doctor`."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import click

from app.cli.terminal import say
from app.core.findings import Level
from app.health.doctor import diagnose


@click.command(short_help="Say what could lose data or hide trouble here.")
@click.option(
    "--path",
    "code",
    default=".",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder from which handler code is imported, as for `work handle`.",
)
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def doctor(code: Path, *, as_json: bool) -> None:
    """Examine this deployment: what could lose data or hide trouble, and what to do about it.

    Needs the same environment as `up`, `serve` and `work`, and works while Redis is down. Prints a line for
    each check: ok, warn or fail. Exit code 0 when nothing fails, be it that something is warned of; 1 when
    something fails, a refused configuration included.

    \b
    Examples:
      outkeep doctor
      outkeep doctor --path /srv/myproject
      outkeep doctor --json
    """
    findings = diagnose(os.environ, code.absolute())
    failed = any(finding.level is Level.FAIL for finding in findings)
    if as_json:
        lines = [dataclasses.asdict(finding) for finding in findings]
        click.echo(json.dumps({"ok": not failed, "findings": lines}, indent=1))
    else:
        for finding in findings:
            say(f"{finding.level:<4} {finding.check}" + (f": {finding.detail}" if finding.detail else ""))
    sys.exit(1 if failed else 0)
