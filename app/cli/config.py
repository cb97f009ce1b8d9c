"""The command `config`: what every setting is, and where it comes from."""

import json
import os

import click

from app import deployment
from app.cli.terminal import say, table
from app.core import notation
from app.core.hosts import AllowedHosts, HostRules
from app.core.secret import SecretStr
from app.disk import KEY_FILE
from app.settings import SIZES, VARIABLES, Settings, doubts


@click.command(short_help="Show every setting, where it comes from, and what is wrong.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def config(*, as_json: bool) -> None:
    """Show every setting, where it comes from, and what keeps `up` from starting. Secrets are not shown.

    \b
    Example:
      outkeep config
    """
    settings, _, problems = deployment.prove(os.environ, receives=True)
    blamed = {problem.partition(":")[0].removesuffix("_FILE") for problem in problems}
    wrong = {name for name in blamed if _origin(name) != "default"}
    unsure = doubts(os.environ)
    rows = [(name, _shown(settings, name), _origin(name)) for name in VARIABLES]
    rows = [(name, "(refused)" if name in wrong else value, origin) for name, value, origin in rows]
    if as_json:
        found = {name: {"value": value, "from": origin} for name, value, origin in rows}
        click.echo(json.dumps({"settings": found, "problems": problems, "doubts": unsure}, indent=1))
    else:
        table(["SETTING", "VALUE", "FROM"], [[name, value or "-", origin] for name, value, origin in rows])
        for problem in problems + unsure:
            say(f"outkeep: {problem}", err=True)
    if problems:
        raise SystemExit(2)


def _shown(settings: Settings, name: str) -> str | None:
    value = getattr(settings, VARIABLES[name])
    if value is None:
        return _effective(settings).get(name)
    if isinstance(value, SecretStr) or name in {"OUTKEEP_SECRET_KEY", "REDIS_URL"}:
        return "(set, not shown)"
    if name in SIZES:
        return notation.shown_size(value)
    if isinstance(value, bool):
        return str(value).lower()
    if name in {"OUTKEEP_RETENTION", "OUTKEEP_RECORD_TTL"}:
        return notation.in_words(value)
    return value.text if isinstance(value, HostRules | AllowedHosts) else str(value)


def _effective(settings: Settings) -> dict[str, str]:
    """What holds where a setting has no value of its own."""
    handlers = deployment.DEFAULT_HANDLERS
    return {
        "REDIS_URL": "(embedded)",
        "OUTKEEP_STORAGE": settings.storage_url,
        "OUTKEEP_SECRET_KEY": f"(made in {settings.data / KEY_FILE})",
        "OUTKEEP_HANDLERS": str(handlers) if handlers.exists() else f"- (no {handlers} here)",
        "OUTKEEP_RETENTION": "(for ever)",
        "OUTKEEP_RECONCILE": settings.reconciles,
        "OUTKEEP_DISK_FLOOR": "(the larger of 1 GiB and 5 %)",
        "OUTKEEP_ALLOWED_HOSTS": "(any)",
        "LOG_FORMAT": "(json, text on a terminal)",
    }


def _origin(name: str) -> str:
    if path := os.environ.get(f"{name}_FILE"):
        return f"file {notation.shown_path(path)}"
    return "environment" if os.environ.get(name) else "default"
