"""The command `album`: a link that shows chosen outputs to somebody without an account here."""

import json
import os
from collections.abc import Sequence
from datetime import timedelta

import click

from app import deployment
from app.cli.opening import TIMEOUT
from app.cli.terminal import say
from app.clock import clock_of
from app.core.errors import Permanent
from app.core.manifest import format_time
from app.core.names import ID, Kind
from app.maintain.albums import LONGEST, USUAL_DAYS, Album, Albums
from app.settings import load
from app.storage.identity import require
from app.storage.store import Storage
from app.valkey.client import connect, find_redis
from app.web.signing import album_url


@click.command(short_help="Share outputs by a link that ends, and can be revoked.")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--days", default=USUAL_DAYS, show_default=True, type=click.IntRange(1, LONGEST.days))
@click.option("--prompts", is_flag=True, help="Show the prompts, too.")
@click.option("--revoke", metavar="ALBUM", help="End an album now.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, one object a line.")
def album(ids: tuple[str, ...], *, days: int, prompts: bool, revoke: str | None, as_json: bool) -> None:
    """Print a link to a page with the outputs of the predictions and trainings ID..., for whoever has it.

    It shows nothing else, and no prompts unless you want that. Without ID, list the albums that are open.

    \b
    Examples:
      outkeep album ype2b3w02xrme0cqadzrms82nm --days 30 --prompts
      outkeep album
      outkeep album --revoke 5f0c2b7d9e13a486
    """
    if ids and revoke:
        raise click.UsageError("give the ids of what is shared, or --revoke, not both")
    for prediction_id in ids:
        if not ID.fullmatch(prediction_id):
            raise click.BadParameter(f"an id has 1 to 64 letters, digits, '_' or '-': {prediction_id!r}")
    settings = load(os.environ)
    storage, redis = Storage(settings.storage_url), connect(find_redis(settings), timeout=TIMEOUT)
    require(redis, storage)
    albums, now = Albums(redis), clock_of(redis)()
    if revoke is not None:
        _revoke(albums, revoke, as_json=as_json)
    elif ids:
        made = albums.make(_stored(storage, ids), until=now + timedelta(days=days), now=now)
        keys = deployment.signing_keys(settings)
        url = album_url(settings.base_url, keys, made.id, until=made.until, prompts=prompts)
        if settings.public_url is None:
            say(
                f"outkeep: OUTKEEP_PUBLIC_URL is not set; only this host reaches {settings.own_url}", err=True
            )
        say(json.dumps({**_document(made), "url": url}) if as_json else url)
        ending = f"open until {format_time(made.until)}; `outkeep album --revoke {made.id}` ends it"
        say(f"outkeep: {ending}", err=True)
    else:
        for one in albums.all(now):
            say(json.dumps(_document(one)) if as_json else _line(one))


def _revoke(albums: Albums, album_id: str, *, as_json: bool) -> None:
    if not albums.revoke(album_id):
        raise Permanent("unknown", f"no album {album_id} is open")
    say(json.dumps({"id": album_id, "revoked": True}) if as_json else f"revoked {album_id}")


def _stored(storage: Storage, ids: Sequence[str]) -> list[tuple[Kind, str]]:
    """What is stored of ids; raises `Permanent` for one of which nothing is."""
    found = []
    for prediction_id in dict.fromkeys(ids):
        kinds = [kind for kind in Kind if storage.read_manifest(kind, prediction_id) is not None]
        if not kinds:
            raise Permanent("unknown", f"nothing is stored of {prediction_id}")
        found += [(kind, prediction_id) for kind in kinds]
    return found


def _document(one: Album) -> dict[str, object]:
    return {"id": one.id, "until": format_time(one.until), "count": one.count}


def _line(one: Album) -> str:
    return f"{one.id}  until {format_time(one.until)}  {one.count} prediction{'s' if one.count != 1 else ''}"
