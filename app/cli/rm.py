"""The command `rm`: remove everything of a prediction."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from app.cli.opening import TIMEOUT
from app.cli.terminal import say
from app.clock import clock_of
from app.core import notation
from app.core.errors import Permanent
from app.core.names import COUNTERS, ID, Kind
from app.core.vocabulary import REMOVED
from app.disk import require_owner
from app.maintain.removal import Found, LocalCopies, Removal
from app.settings import load
from app.storage.identity import require
from app.storage.store import Storage
from app.telemetry.tally import series
from app.valkey.client import connect, find_redis

ASKED = "asked"
"""The cause, as metrics name it."""


@click.command(short_help="Remove everything of predictions and trainings.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in Kind]),
    help="In case a prediction and a training share the id.",
)
@click.option("--yes", is_flag=True, help="Do not ask on a terminal.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def rm(ids: tuple[str, ...], *, kind: str | None, yes: bool, as_json: bool) -> None:
    """Remove everything of predictions and trainings: files, manifest, record, jobs, what waits on this host.

    A delivery about one that comes later is taken for a repeat, and not kept. Predictions that were made from
    its outputs are predictions of their own. Exit code 1 when nothing is known of an id.

    \b
    Examples:
      outkeep rm ype2b3w02xrme0cqadzrms82nm
      outkeep rm ype2b3w02xrme0cqadzrms82nm --yes --json
    """
    for prediction_id in ids:
        if not ID.fullmatch(prediction_id):
            raise click.BadParameter(f"an id has 1 to 64 letters, digits, '_' or '-': {prediction_id!r}")
    settings = load(os.environ)
    storage = Storage(settings.storage_url)
    require_owner(settings.data, *([storage.folder] if storage.folder else []))
    # A Redis that is away could bring it all back, so nothing is done without.
    redis = connect(find_redis(settings), timeout=TIMEOUT)
    require(redis, storage)
    removal = Removal(
        redis,
        storage,
        ttl=settings.record_ttl,
        clock=clock_of(redis),
        local=LocalCopies(settings.temporary, settings.data / "spool", settings.data / "thumbs"),
    )
    kinds = [Kind(kind)] if kind else list(Kind)
    unknown = [one for one in dict.fromkeys(ids) if not _look(removal, kinds, one)]
    for prediction_id in [one for one in dict.fromkeys(ids) if one not in unknown]:
        for found in _look(removal, kinds, prediction_id):
            if not yes and sys.stdin.isatty() and not click.confirm(f"Remove {_sentence(found)}?", err=True):
                say(f"kept {found.kind} {found.id}", err=True)
                continue
            removed = removal.remove(found)
            redis.hincrby(COUNTERS, series(REMOVED, [found.kind, ASKED]), 1)
            say(json.dumps(_document(removed)) if as_json else f"removed {_sentence(removed)}")
    if unknown:
        raise Permanent("unknown", f"nothing is known of {', '.join(unknown)}")


def _look(removal: Removal, kinds: list[Kind], prediction_id: str) -> list[Found]:
    return [found for kind in kinds if (found := removal.search(kind, prediction_id))]


def _sentence(found: Found) -> str:
    return f"{found.kind} {found.id}: {'; '.join(_parts(found))}"


def _parts(found: Found) -> Iterator[str]:
    if found.objects:
        names = ", ".join(name.rpartition("/")[2] for name in found.objects)
        yield f"{_count(found.objects, 'object', 's')} of {notation.shown_size(found.size)} ({names})"
    if found.state:
        yield f"the record ({found.state})"
    if found.jobs:
        yield _count(found.jobs, "job", "s")
    if found.local:
        yield f"{_count(found.local, 'file', 's')} that waited on this host"
    if found.quarantined:
        yield f"{_count(found.quarantined, 'deliver', 'ies', 'y')} in quarantine"
    if found.unnoted:
        yield (
            f"the note of its removal could not be written ({found.unnoted}): the sweep tries again, and "
            "until then a Redis that comes back empty could let it be taken in anew"
        )
    if found.running:
        yield f"{_count(found.running, 'job', 's')} still running, what comes of it is removed when it ends"


def _count(things: Sequence[object], stem: str, many: str, one: str = "") -> str:
    return f"{len(things)} {stem}{one if len(things) == 1 else many}"


def _document(found: Found) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "id": found.id,
        "state": found.state,
        "objects": list(found.objects),
        "bytes": found.size,
        "jobs": [job.id for job in found.jobs],
        "running": [job.id for job in found.running],
        "local": [path.name for path in found.local],
        "quarantined": list(found.quarantined),
    } | ({"unnoted": found.unnoted} if found.unnoted else {})
