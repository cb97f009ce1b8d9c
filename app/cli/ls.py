"""The command `ls`, which people wait for most often: what only some of its options need is loaded then."""

import itertools
import json
import os
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

from app.accept.records import Record, Records
from app.cli.terminal import say, table
from app.clock import Clock
from app.core.manifest import format_time
from app.core.names import QUARANTINE
from app.settings import Settings, load
from app.valkey.client import connect, find_redis

TIMEOUT = 5.0
"""Seconds that Redis may take to answer."""


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
        from app.storage.store import Storage

        # The bytes that lie beside a document are named in it.
        names = [name for name in Storage(settings.storage_url).names(QUARANTINE) if name.endswith(".json")]
        for name in sorted(names, reverse=True)[:limit]:
            say(json.dumps({"object": name}) if as_json else name)
        return
    if failed:
        _list_failures(settings, limit, as_json=as_json)
        return
    redis = connect(find_redis(settings), timeout=TIMEOUT)
    newest = Records(redis, ttl=settings.record_ttl).newest()
    wanted = (record for record in newest if record.lost or not lost)
    records = list(itertools.islice(wanted, limit))
    if as_json:
        for record in records:
            click.echo(json.dumps(summary(record)))
        return
    if not records:
        click.echo("nothing was lost" if lost else "nothing yet", err=True)
    clock = Clock()
    clock.ask(redis)  # by which it was written when they came
    rows = [_row(record, clock()) for record in records]
    table(["ID", "KIND", "STATUS", "STATE", "FILES", "LOST", "AGE", "MODEL"], rows)


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
    from app.maintain.replay import failures

    redis = connect(find_redis(settings), timeout=TIMEOUT)
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
