"""Commands that look: ls, config."""

import itertools
import json
import os
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click
from pydantic import ByteSize, SecretStr
from redis.exceptions import RedisError

from app import deployment
from app.accept.inbox import connect
from app.accept.records import Record, Records
from app.cli.terminal import say, table
from app.clock import Clock, clock_of
from app.core import notation
from app.core.errors import ConfigurationError
from app.core.hosts import AllowedHosts, HostRules
from app.core.manifest import format_time
from app.core.names import QUARANTINE
from app.maintain.replay import failures
from app.settings import VARIABLES, Settings, doubts, load
from app.storage.identity import require
from app.storage.store import Storage

TIMEOUT = 5.0


@click.command()
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="How many at most.")
@click.option("--lost", is_flag=True, help="Only those with outputs that could not be kept.")
@click.option("--failed", is_flag=True, help="What was given up: `outkeep replay --failed` does it again.")
@click.option("--quarantine", is_flag=True, help="Deliveries that were signed but not usable.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def ls(*, limit: int, lost: bool, failed: bool, quarantine: bool, as_json: bool) -> None:
    """List what was received, the latest change first.

    STATE is where it stands here: running, received, stored, dispatched (its handlers are being told)
    or failed.

    \b
    Examples:
      outkeep ls
      outkeep ls --lost --json
      outkeep ls --failed
    """
    if sum([lost, failed, quarantine]) > 1:
        raise click.UsageError("give one of --lost, --failed and --quarantine")
    settings = load(os.environ)
    if quarantine:
        # The bytes that lie beside a document are named in it.
        names = [name for name in Storage(settings.storage_url).names(QUARANTINE) if name.endswith(".json")]
        for name in sorted(names, reverse=True)[:limit]:
            say(json.dumps({"object": name}) if as_json else name)
        return
    if failed:
        _list_failures(settings, limit, as_json=as_json)
        return
    redis = connect(deployment.find_redis(settings), timeout=TIMEOUT)
    newest = Records(redis, ttl=settings.record_ttl).newest()
    wanted = (record for record in newest if record.lost or not lost)
    records = list(itertools.islice(wanted, limit))
    if as_json:
        for record in records:
            click.echo(json.dumps(summary(record)))
        return
    if not records:
        click.echo("nothing was lost" if lost else "nothing yet", err=True)
    now = clock_of(redis)()  # by which it was written when they came
    rows = [_row(record, now) for record in records]
    table(["ID", "KIND", "STATUS", "STATE", "FILES", "LOST", "AGE", "MODEL"], rows)


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


def open_records(settings: Settings) -> Records:
    """The records of the deployment this environment describes."""
    url = deployment.find_redis(settings)
    return Records(connect(url, timeout=TIMEOUT), ttl=settings.record_ttl)


def open_storage(settings: Settings) -> tuple[Storage, Clock]:
    """The storage, for what needs no Redis, and the clock of the one that answers, else of this host.

    Raises `ConfigurationError` where one answers and has another storage.
    """
    storage, clock = Storage(settings.storage_url), Clock()
    try:
        redis = connect(deployment.find_redis(settings), timeout=TIMEOUT)
    except ConfigurationError:
        return storage, clock
    with closing(redis), suppress(RedisError):
        clock.ask(redis)
        require(redis, storage)
    return storage, clock


def summary(record: Record) -> dict[str, Any]:
    """What `--json` says of a record."""
    return {
        "id": record.id,
        "kind": record.kind,
        "status": record.status,
        "state": record.state,
        "model": record.model,
        "files": record.files,
        "lost": record.lost,
        "received_at": format_time(record.received_at),
        "updated_at": format_time(record.updated_at),
        "source": record.receipt.source,
        "error": record.error,
    }


def _list_failures(settings: Settings, limit: int, *, as_json: bool) -> None:
    redis = connect(deployment.find_redis(settings), timeout=TIMEOUT)
    found = list(itertools.islice(failures(redis, Records(redis, ttl=settings.record_ttl)), limit))
    if as_json:
        for one in found:
            click.echo(json.dumps(asdict(one)))
        return
    if not found:
        click.echo("nothing was given up", err=True)
    rows = [
        [one.id, one.kind, one.handler or "-", str(one.attempts), one.error or "-", one.at or "-"]
        for one in found
    ]
    table(["ID", "KIND", "HANDLER", "ATTEMPTS", "ERROR", "AT"], rows)


def _row(record: Record, now: datetime) -> list[str]:
    seconds = max(int((now - record.received_at).total_seconds()), 0)
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    size, unit = next(((size, unit) for size, unit in units if seconds >= size), (1, "s"))
    age = f"{seconds // size} {unit}"
    return [
        record.id, record.kind, record.status, record.state,
        str(record.files), str(record.lost), age, record.model or "",
    ]  # fmt: skip


def _shown(settings: Settings, name: str) -> str | None:
    value = getattr(settings, VARIABLES[name])
    if value is None:
        return _effective(settings).get(name)
    if isinstance(value, SecretStr) or name in {"OUTKEEP_SECRET_KEY", "REDIS_URL"}:
        return "(set, not shown)"
    if isinstance(value, ByteSize):
        return value.human_readable()
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
        "OUTKEEP_SECRET_KEY": f"(made in {settings.data / deployment.KEY_FILE})",
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
