"""The command `handlers`: how each handler fares, and switching one on again."""

import json
import os
from typing import Any

import click
from redis import Redis

from app import deployment
from app.cli.opening import TIMEOUT
from app.cli.terminal import table
from app.core.handlers import Call, Handler, Target
from app.maintain.backlog import handler_counts
from app.maintain.handler_states import HandlerState, HandlerStates
from app.valkey.client import connect, find_redis


@click.group(
    invoke_without_command=True, short_help="List the handlers: their state, what waits, dead letters."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def handlers(context: click.Context, *, as_json: bool) -> None:
    """List the handlers: whether they are told, how much waits for them, and how the latest attempt ended.

    STATE is on, slow (it did not answer several times in a row, and is asked every 30 seconds whether it does
    again), off (it answered 410 and is told nothing more) or unknown (no longer in the handlers file).
    WAITING counts notifications on their way and functions that have not ended, DEAD what was given up. LAST
    tells of a function only when it was handed to its queue: `outkeep show` tells how it ended.

    \b
    Examples:
      outkeep handlers
      outkeep handlers enable gallery
    """
    if context.invoked_subcommand is not None:
        return
    redis, found = _open()
    targets = {handler.name: handler.target for handler in found}
    names = list(targets)
    waiting, dead = handler_counts(redis)
    states = HandlerStates(redis)
    rows = []
    for name in [*names, *sorted((waiting.keys() | dead.keys()) - set(names))]:
        state = states.get(name)
        word = state.word if name in names else "unknown"
        if as_json:
            counts = {"waiting": waiting[name], "dead": dead[name]}
            off = {"off_since": state.off_since}
            click.echo(json.dumps({"handler": name, "state": word, **counts, **off, "last": state.last}))
        rows.append([name, word, str(waiting[name]), str(dead[name]), _last(state, targets.get(name))])
    if as_json:
        return
    if not rows:
        click.echo("the handlers file has no handler", err=True)
    table(["HANDLER", "STATE", "WAITING", "DEAD", "LAST"], rows)


@handlers.command(short_help="Switch a handler on again that was switched off.")
@click.argument("name")
def enable(name: str) -> None:
    """Switch the handler NAME on again, after it was switched off because it answered 410.

    What it missed stands among its dead letters until it is replayed.

    \b
    Examples:
      outkeep handlers enable gallery
      outkeep replay --failed --handler gallery
    """
    redis, found = _open()
    was_off = HandlerStates(redis).switch_on(name)
    if not was_off and name not in {handler.name for handler in found}:
        raise click.BadParameter(f"the handlers file has no handler {name!r}")
    click.echo(f"{name} is switched on" if was_off else f"{name} is on already")
    _, dead = handler_counts(redis)
    if dead[name]:
        click.echo(f"to send its {dead[name]} dead letters: outkeep replay --failed --handler {name}")


def _open() -> tuple[Redis, tuple[Handler, ...]]:
    """Redis, and the handlers of the file in its order."""
    settings, found = deployment.prepare(os.environ)
    return connect(find_redis(settings), timeout=TIMEOUT), found


def _last(state: HandlerState, target: Target | None) -> str:
    last: dict[str, Any] = dict(state.last or {})
    if not last:
        return "-"
    # How a run of a function ends is not known yet when the job is handed on: DEAD counts those that gave up.
    done = "handed to its queue" if isinstance(target, Call) else "told"
    result = done if last["error"] is None else last["error"]
    return f"{result} at {last['at']}"
