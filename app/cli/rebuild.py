"""The command `rebuild`: what Redis has forgotten, from storage."""

import json
import os
from collections import Counter
from collections.abc import Iterator

import click

from app import deployment
from app.accept.changes import ask_for_rebuild
from app.cli.terminal import Progress
from app.clock import clock_of
from app.core.errors import Permanent
from app.core.names import Kind
from app.maintain.rebuild import Rebuild, Rebuilt, object_of
from app.storage.identity import require
from app.storage.store import Storage
from app.valkey.client import connect, find_redis

TIMEOUT = 30.0
"""Seconds for one round trip, which carries some hundred predictions."""


@click.command(short_help="Restore from storage what Redis has lost.")
@click.option("--all", "everything", is_flag=True, help="Records of any age, not only OUTKEEP_RECORD_TTL.")
@click.option("--catalog", is_flag=True, help="Only have receivers build what the dashboard searches anew.")
@click.option("--json", "as_json", is_flag=True, help="What was done as one JSON object.")
def rebuild(*, everything: bool, catalog: bool, as_json: bool) -> None:
    """Restore from storage what Redis has lost: the list of predictions, owed notifications, dead letters.

    Handlers are told that were not told yet, however old the prediction: also one that you have added since,
    and follow-ups of the kind `predict` cost money. Running it again, or beside live traffic, does no harm.
    What was never stored is not restored: predictions that still run, and events that waited in Redis; of
    those, reconciliation finds what Replicate still lists. Exit code 1 when a manifest could not be read.

    \b
    Examples:
      outkeep rebuild
      outkeep rebuild --all --json
      outkeep rebuild --catalog
    """
    settings, handlers = deployment.prepare(os.environ)
    redis = connect(find_redis(settings), timeout=TIMEOUT)
    storage = Storage(settings.storage_url)
    identity = require(redis, storage)
    if catalog:
        ask_for_rebuild(redis)
        click.echo("{}" if as_json else "each receiver builds its catalog anew, in the background")
        return
    service = Rebuild(
        redis,
        storage,
        handlers,
        ttl=settings.record_ttl,
        everything=everything,
        clock=clock_of(redis),
    )
    counts, faults = _count(service.run(), as_json=as_json)
    identity.renew()
    if as_json:
        click.echo(json.dumps({**counts, "unreadable": faults}))
    else:
        for sentence in _sentences(counts):
            click.echo(sentence)
    if faults:
        raise Permanent("manifest_unreadable", f"{len(faults)} could not be read; all others are done")


def _count(lines: Iterator[Rebuilt], *, as_json: bool) -> tuple[dict[str, int], list[dict[str, str]]]:
    names = ("predictions", "trainings", "records", "expired", "notifications", "dead_letters", "uncommitted")
    counts, faults = Counter(dict.fromkeys(names, 0)), []
    with Progress("read") as progress:
        for line in lines:
            progress.step()
            if line.fault is not None:
                faults.append({"object": object_of(line), "reason": line.fault})
                if not as_json:
                    progress.interrupt(f"NOT read: {object_of(line)}: {line.fault}")
                continue
            counts.update(_facts(line))
    return dict(counts), faults


def _facts(line: Rebuilt) -> dict[str, int]:
    if not line.committed:
        return {"uncommitted": 1}
    return {
        line.kind.folder: 1,
        "records": line.record,
        "expired": line.expired,
        "notifications": line.jobs,
        "dead_letters": line.dead_letters,
    }


def _sentences(counts: dict[str, int]) -> Iterator[str]:
    read = ", ".join(f"{counts[kind.folder]} {kind.folder}" for kind in Kind)
    yield f"read from storage: {read}"
    older = f" ({counts['expired']} are older than OUTKEEP_RECORD_TTL; --all takes them, too)"
    yield f"records restored: {counts['records']}{older if counts['expired'] else ''}"
    yield f"notifications enqueued: {counts['notifications']}"
    yield f"dead letters listed again: {counts['dead_letters']}"
    if counts["uncommitted"]:
        yield f"without a manifest, so not finished: {counts['uncommitted']}"
