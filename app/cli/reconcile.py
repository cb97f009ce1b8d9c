"""The command `reconcile`: find now what finished on Replicate and never arrived."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any

import click
from redis import Redis

from app import deployment
from app.cli.kept import bar
from app.cli.opening import TIMEOUT
from app.cli.terminal import parse_moment, say
from app.core.errors import ConfigurationError, Permanent
from app.core.manifest import format_time
from app.core.names import RECONCILE_TURN, Kind
from app.core.reconciling import Found
from app.deployment import Deployment
from app.maintain.lease import leased
from app.reconcile.passes import Report, Tell, reconciler_of, say_nothing
from app.storage.identity import require
from app.storage.store import Storage
from app.telemetry.tally import Tally
from app.valkey.client import connect

PATIENCE = 30.0
"""Seconds to wait for a pass that another process makes."""

_WORDS = {
    Found.NEW: "taken in, to be kept now",
    Found.LATE: "taken in, but past the hour: what is gone will be listed as lost",
    Found.KNOWN: "known already",
    Found.RUNNING: "running",
    Found.EXPECTED: "ended just now, its webhook may still come",
    Found.BYGONE: "gone before Outkeep first ran",
    Found.FOREIGN: "not ours (OUTKEEP_RECONCILE=known)",
    Found.ABSENT: "not known to Replicate any more",
    Found.UNREADABLE: "not readable",
    Found.FAILED: "not told by Replicate; asked again later",
}


@click.command(short_help="Find what finished at Replicate and never arrived.")
@click.option("--since", help="What was created since then: 1h, 2d, or 2026-03-16T10:00:00Z.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def reconcile(*, since: str | None, as_json: bool) -> None:
    """Find what finished on Replicate and never arrived, and keep it; the workers do so every minute.

    Without --since it looks back to where the last complete pass ended. Needs REPLICATE_API_TOKEN. It is
    asked for, so with OUTKEEP_RECONCILE=off it looks for all of the account.

    \b
    Examples:
      outkeep reconcile
      outkeep reconcile --since 1h
    """
    settings, handlers = deployment.prepare(os.environ)
    if settings.api_token is None:
        raise ConfigurationError(
            ["REPLICATE_API_TOKEN: not set, and without it Replicate's lists cannot be read"]
        )
    deployed = deployment.connect(settings, handlers)
    report, complete = Report(), False
    with closing(connect(deployed.redis_url, timeout=TIMEOUT)) as redis:
        require(redis, Storage(settings.storage_url))
        with _turn(redis):
            deployed.clock.ask(redis)
            start = parse_moment(since, deployed.clock()) if since is not None else None
            try:
                with _progress() as tell:
                    asyncio.run(_pass(deployed, redis, report, start, tell))
                complete = True
            finally:
                show(report, start, as_json=as_json, complete=complete)
    if any(counts[Found.FAILED] for counts in report.counts.values()):
        raise Permanent("incomplete", "Replicate did not tell all of them; they are asked for again later")


async def _pass(
    deployed: Deployment, redis: Redis, report: Report, start: datetime | None, tell: Tell
) -> None:
    tally = Tally()
    try:
        async with reconciler_of(deployed, redis, deployed.clock, tell=tell, tally=tally) as reconciler:
            await reconciler.run(report, start)
    finally:
        tally.flush(redis)


@contextmanager
def _turn(redis: Redis) -> Iterator[None]:
    """Our turn, once another process has ended its pass."""
    until = time.monotonic() + PATIENCE
    while True:
        with leased(redis, RECONCILE_TURN) as ours:
            if ours:
                yield
                return
        if time.monotonic() > until:
            raise Permanent("busy", "another process reconciles at this moment; try again when it is done")
        time.sleep(0.2)


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield say_nothing
        return

    def tell(kind: Kind, done: int, of: int) -> None:
        if of:
            click.echo(f"\r{kind.folder} {bar(100 * done // of)} {done}/{of}", nl=False, err=True)

    try:
        yield tell
    finally:
        click.echo("\r\033[K", nl=False, err=True)


def show(report: Report, start: datetime | None, *, as_json: bool, complete: bool) -> None:
    """Print what a pass has found; of one that is not complete, where it found nothing nobody knows."""
    if not complete and not any(report.counts.values()):
        return
    if as_json:
        click.echo(json.dumps(_object(report, start)))
        return
    for prediction, found in report.taken:
        say(f"{found}: {prediction.kind} {prediction.id} {prediction.status}")
    for kind in Kind:
        told = [f"{count} {_WORDS[found]}" for found, count in sorted(report.counts[kind].items())]
        if told or complete:
            say(f"{kind.folder}: {'; '.join(told) if told else 'none'}")


def _object(report: Report, start: datetime | None) -> dict[str, Any]:
    return {
        "since": format_time(start) if start else None,
        **{kind.folder: {str(found): report.counts[kind][found] for found in Found} for kind in Kind},
        "taken": [
            {"kind": one.kind, "id": one.id, "status": one.status, "found": found}
            for one, found in report.taken
        ],
    }
