"""The command `verify`: whether what is stored is still what was stored."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime

import click

from app.cli.opening import open_storage
from app.cli.terminal import Progress, parse_moment, say
from app.core import notation
from app.core.names import ID, Kind, folder_name
from app.maintain.verify import Odd, Verified, Verifier, everything
from app.settings import load
from app.storage.store import Storage


@click.command(short_help="Read stored files again, and compare them with the manifests.")
@click.argument("ids", metavar="[ID...]", nargs=-1)
@click.option("--since", help="All that was stored since then: 1h, 2d, or 2026-03-16T10:00:00Z.")
@click.option("--all", "all_of_it", is_flag=True, help="All that is stored.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, the sums last.")
def verify(ids: tuple[str, ...], *, since: str | None, all_of_it: bool, as_json: bool) -> None:
    """Read stored files again, and compare their sizes and SHA-256 with the manifests; needs no Redis.

    Prints a line for each file that is missing or differs, and for each manifest that cannot be read. Exit
    code 1 when there is any, or when nothing is stored of an id. What was lost before it could be stored is
    not looked for.

    \b
    Examples:
      outkeep verify ype2b3w02xrme0cqadzrms82nm
      outkeep verify --since 1d
      outkeep verify --all --json
    """
    if sum([bool(ids), all_of_it, since is not None]) != 1:
        raise click.UsageError("name what to verify: ids, or --since, or --all")
    for one in ids:
        if not ID.fullmatch(one):
            raise click.BadParameter(f"an id has 1 to 64 letters, digits, '_' or '-': {one!r}")
    storage, clock = open_storage(load(os.environ))
    moment = None if since is None else parse_moment(since, clock())
    verifier = Verifier(storage, moment)
    count = {"predictions": 0, "files": 0, "bytes": 0, "odd": 0}
    with Progress("verified", lambda: len(set(ids)) or _many(storage, moment)) as progress:
        for found in _of(verifier, ids) if ids else verifier.verify(everything(storage, moment)):
            progress.step()
            if found is None:
                continue
            for odd in found.odd:
                progress.pause()
                say(json.dumps(asdict(odd)) if as_json else f"{odd.problem} {odd.object}: {odd.detail}")
            count["predictions"] += 1
            count["files"] += found.files
            count["bytes"] += found.size
            count["odd"] += len(found.odd)
    if as_json:
        click.echo(json.dumps({"ok": not count["odd"], **count}))
    else:
        say(_sum(count, storage.url, since), err=True)
    sys.exit(1 if count["odd"] else 0)


def _many(storage: Storage, moment: datetime | None) -> int:
    return sum(1 for _ in everything(storage, moment))


def _sum(count: Mapping[str, int], url: str, since: str | None) -> str:
    if not count["predictions"]:  # perhaps it is another storage than was meant
        return f"nothing {'is stored' if since is None else 'was stored since then'} in {url}"
    end = f"{count['odd']} are missing or differ" if count["odd"] else "all are as they were stored"
    size = notation.shown_size(count["bytes"])
    return f"{count['files']} files of {count['predictions']} predictions ({size}): {end}"


def _of(verifier: Verifier, ids: tuple[str, ...]) -> Iterator[Verified | None]:
    """What there is of each id, a prediction or a training."""
    for one in dict.fromkeys(ids):
        found = [verified for verified in verifier.verify([(kind, one) for kind in Kind]) if verified]
        if not found:
            place = folder_name(Kind.PREDICTION, one)
            yield Verified(0, 0, (Odd("missing", Kind.PREDICTION, one, place, "nothing is stored of it"),))
        yield from found
