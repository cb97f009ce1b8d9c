"""The command `run`: what it takes, read and proven before anything is paid for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from app.core.errors import Permanent
from app.core.notation import cancel_after
from app.core.request import LocalFile, Model, local_files, parse_context, parse_input, parse_runnable


@click.command("run")
@click.argument("model")
@click.option(
    "-i", "--input", "pairs", multiple=True, metavar="KEY=VALUE",
    help="An input: text, a number, true, false, JSON, or @FILE to upload one. KEY[]=VALUE adds to a list.",
)  # fmt: skip
@click.option("--input-json", type=click.File("rb"), help="All inputs as one JSON object; -i adds to it.")
@click.option(
    "--context", "context_pairs", multiple=True, metavar="KEY=VALUE",
    help="Comes back to your handlers as `context`.",
)  # fmt: skip
@click.option(
    "--cancel-after", metavar="DURATION",
    help="Let Replicate cancel it unless it has ended by then, 5s to 24h from now, such as 10m.",
)  # fmt: skip
@click.option("--no-wait", is_flag=True, help="Print the id and end; what it makes is kept all the same.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end.")
def run(model: str, *, no_wait: bool, as_json: bool, **options: Any) -> None:
    """Run MODEL at Replicate and keep what it makes. This costs what Replicate asks for it.

    MODEL is owner/name, owner/name:version, a version alone, or deployments/owner/name. Outkeep must be
    running. With OUTKEEP_PUBLIC_URL its webhooks come here; without it this command asks how far it is.

    Exit code 0 when it succeeded and all it made is kept, 1 when not. Ctrl-C asks whether to cancel it.

    \b
    Examples:
      outkeep run black-forest-labs/flux-schnell -i prompt="a lighthouse at dusk"
      outkeep run owner/describe -i image=@my_fridge.jpg -i max_tokens=200
      outkeep run owner/slow -i prompt=x --cancel-after 10m
      outkeep run deployments/me/mine -i photo=https://example.com/photo.jpg --no-wait
    """
    wanted, given, context = _read(model, options)
    try:
        after = cancel_after(options["cancel_after"]) if options["cancel_after"] else None
    except Permanent as error:
        raise click.BadParameter(error.message, param_hint="--cancel-after") from None
    from app.cli import running  # the official client takes a while to load

    running.run(wanted, given, context, cancel_after=after, no_wait=no_wait, as_json=as_json)


def _read(model: str, options: Mapping[str, Any]) -> tuple[Model, dict[str, Any], dict[str, str]]:
    """What was typed, read and proven; raises click's errors."""
    runnable = parse_runnable(model)
    if runnable is None:
        forms = "owner/name, owner/name:version, a version (64 hex digits), or deployments/owner/name"
        raise click.BadParameter(f"write {forms}", param_hint="MODEL")
    try:
        given = parse_input(options["pairs"], _json_of(options["input_json"]))
    except Permanent as error:
        raise click.BadParameter(error.message, param_hint="-i") from None
    try:
        context = parse_context(options["context_pairs"])
    except Permanent as error:
        raise click.BadParameter(error.message, param_hint="--context") from None
    for file in local_files(given):
        _require_readable(file)
    return runnable, given, context


def _json_of(file: Any) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        value = json.load(file)
    except (ValueError, RecursionError):
        raise click.BadParameter("it is not JSON", param_hint="--input-json") from None
    if not isinstance(value, dict):
        raise click.BadParameter("it is not a JSON object", param_hint="--input-json")
    return value


def _require_readable(file: LocalFile) -> None:
    try:
        with Path(file.path).open("rb"):
            pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise click.BadParameter(f"cannot read {file.path}: {reason}", param_hint="-i") from None
