"""The command `replay`: tell handlers again, and try again what was given up."""

import json
import os
from collections.abc import Iterator
from datetime import datetime

import click

from app import deployment
from app.accept.records import Records
from app.cli.opening import TIMEOUT
from app.cli.terminal import parse_moment, say
from app.clock import Clock, clock_of
from app.core.errors import Permanent
from app.core.names import ID
from app.maintain.replay import Outcome, Replay, Replayed
from app.storage.identity import require
from app.storage.store import Storage
from app.valkey.client import connect, find_redis

_WORDS = {
    Outcome.ENQUEUED: "enqueued",
    Outcome.HASTENED: "now instead of later",
    Outcome.WAITING: "on its way already",
    Outcome.REFUSED: "NOT enqueued",
}


@click.command(short_help="Tell handlers again, from what is stored.")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--failed", is_flag=True, help="All that was given up: what `outkeep ls --failed` lists.")
@click.option("--since", help="All that was stored since then: 1h, 2d, or 2026-03-16T10:00:00Z.")
@click.option("--handler", help="Tell only this handler.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def replay(
    ids: tuple[str, ...], *, failed: bool, since: str | None, handler: str | None, as_json: bool
) -> None:
    """Tell handlers again about predictions and trainings, from what is stored and with fresh links.

    A handler sees the same webhook-id as before. Predictions whose outputs could not be kept are tried again,
    too. Exit code 1 tells that something could not be enqueued.

    \b
    Examples:
      outkeep replay ype2b3w02xrme0cqadzrms82nm
      outkeep replay --failed
      outkeep replay --since 1h --handler gallery
    """
    if sum([bool(ids), failed, since is not None]) != 1:
        raise click.UsageError("name what to replay: ids, or --failed, or --since")
    for prediction_id in ids:
        if not ID.fullmatch(prediction_id):
            raise click.BadParameter(f"an id has 1 to 64 letters, digits, '_' or '-': {prediction_id!r}")
    done = refused = 0
    service, clock = _open(handler)
    moment = None if since is None else parse_moment(since, clock())
    for line in _lines(service, ids, moment):
        done += 1
        refused += line.outcome is Outcome.REFUSED
        say(json.dumps(line.to_object()) if as_json else _sentence(line))
    if not done:
        click.echo("there is nothing to replay", err=True)
    if refused:
        raise Permanent("not_replayed", f"{refused} of {done} could not be enqueued")


def _lines(service: Replay, ids: tuple[str, ...], moment: datetime | None) -> Iterator[Replayed]:
    if moment is not None:
        return service.since(moment)
    if ids:
        return (line for prediction_id in dict.fromkeys(ids) for line in service.one(prediction_id))
    return service.failed()


def _open(only: str | None) -> tuple[Replay, Clock]:
    settings, handlers = deployment.prepare(os.environ)
    if only is not None and only not in {handler.name for handler in handlers}:
        raise click.BadParameter(f"the handlers file has no handler {only!r}", param_hint="--handler")
    redis, storage = connect(find_redis(settings), timeout=TIMEOUT), Storage(settings.storage_url)
    require(redis, storage)
    records = Records(redis, ttl=settings.record_ttl)
    return Replay(redis, storage, records, handlers, only), clock_of(redis)


def _sentence(line: Replayed) -> str:
    task = f"tell {line.handler} about " if line.handler else ""
    what = f"{line.kind} {line.id}" if line.kind else line.id
    verb = task or ("keep " if line.job else "")
    reason = f": {line.reason}" if line.reason else ""
    return f"{_WORDS[line.outcome]}: {verb}{what}{reason}"
