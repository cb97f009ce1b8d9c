"""The command `show`: all that is known of one prediction."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import click
from redis.exceptions import RedisError

from app.accept.records import Record
from app.cli import kept
from app.cli.ls import summary
from app.cli.opening import open_records
from app.cli.terminal import say
from app.core.context import Lineage, lineage
from app.core.errors import ConfigurationError, OutkeepError, Permanent
from app.core.manifest import KeptFile, Manifest
from app.core.names import ID, Kind, object_name
from app.settings import Settings, load
from app.storage.store import Storage


@dataclass
class _Known:
    """What is known under an id and a kind; `trouble` is why the storage could not tell all it has."""

    kind: Kind
    record: Record | None
    manifest: Manifest | None = None
    told: dict[str, Any] = field(default_factory=dict)
    trouble: OutkeepError | None = None


@click.command(short_help="Show one prediction or training, and who was told.")
@click.argument("prediction_id", metavar="ID")
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in Kind]),
    help="In case a prediction and a training share the id.",
)
@click.option("--json", "as_json", is_flag=True, help="Record, manifest and outcomes as one JSON object.")
def show(prediction_id: str, *, kind: str | None, as_json: bool) -> None:
    """Show one prediction or training: its state, its files, and who was told.

    Exit code 1 when nothing is known of it, or when not all of it could be read.

    \b
    Examples:
      outkeep show ype2b3w02xrme0cqadzrms82nm
      outkeep show ype2b3w02xrme0cqadzrms82nm --json
    """
    if not ID.fullmatch(prediction_id):
        raise click.BadParameter("an id has 1 to 64 letters, digits, '_' or '-'")
    settings = load(os.environ)
    storage = Storage(settings.storage_url)
    records = _records(settings, prediction_id)
    asked = [_look(storage, one, prediction_id, records.get(one)) for one in ([Kind(kind)] if kind else Kind)]
    found = [one for one in asked if one.record or one.manifest]
    if as_json and len(found) > 1:
        raise click.UsageError("a prediction and a training have this id; add --kind")
    for one in found:
        if as_json:
            click.echo(json.dumps(_document(one), indent=1))
        else:
            say(f"{one.kind} {prediction_id}")
            _print(one, storage.url)
    for trouble in [one.trouble for one in asked if one.trouble]:
        raise trouble
    if not found:
        raise Permanent("unknown", f"nothing is known of {prediction_id}")


def _records(settings: Settings, prediction_id: str) -> dict[Kind, Record | None]:
    # Storage alone is enough to show what was kept, so a Redis that is not there does not matter.
    try:
        records = open_records(settings)
        return {kind: records.get(kind, prediction_id) for kind in Kind}
    except ConfigurationError as error:
        reason = error.problems[0]
    except RedisError as error:
        reason = f"Redis does not answer ({type(error).__name__})"
    say(f"{reason}: shown from storage alone", err=True)
    return {}


def _look(storage: Storage, kind: Kind, prediction_id: str, record: Record | None) -> _Known:
    known = _Known(kind, record)
    try:
        known.manifest = storage.read_manifest(kind, prediction_id)
        known.told = _outcomes(storage, kind, prediction_id)
    except OutkeepError as error:
        known.trouble = error  # the record is worth showing all the more
    return known


def _outcomes(storage: Storage, kind: Kind, prediction_id: str) -> dict[str, Any]:
    prefix = object_name(kind, prediction_id, "told-")
    outcomes = {}
    for name in sorted(storage.names(object_name(kind, prediction_id, "").rstrip("/"))):
        data = storage.get(name) if name.startswith(prefix) else None
        if data is not None:
            outcomes[name.removeprefix(prefix).removesuffix(".json")] = _outcome(data)
    return outcomes


def _outcome(data: bytes) -> dict[str, Any]:
    try:
        outcome = json.loads(data)
    except ValueError:  # torn by a power cut
        outcome = None
    return outcome if isinstance(outcome, dict) else {"outcome": "unreadable"}


def _document(known: _Known) -> dict[str, Any]:
    return {
        "record": summary(known.record) if known.record else None,
        "manifest": json.loads(known.manifest.to_json()) if known.manifest else None,
        "told": known.told,
        "lineage": asdict(line) if (line := _lineage(known)) else None,
        "children": dict(_children(known)),
    }


def _lineage(known: _Known) -> Lineage | None:
    """What it follows."""
    source = known.manifest or known.record
    return lineage(source.receipt.context) if source else None


def _children(known: _Known) -> Iterator[tuple[str, str]]:
    """The handlers that made follow-ups of it, with their ids."""
    for handler, outcome in known.told.items():
        if isinstance(outcome.get("child"), str):
            yield handler, outcome["child"]


def _print_record(record: Record) -> None:
    say(f"  status  {record.status}")
    say(f"  state   {record.state}")
    if record.error is not None:
        say(f"  error   {record.error}")


def _print(known: _Known, where: str) -> None:
    record, manifest = known.record, known.manifest
    if record is not None:
        _print_record(record)
    if (line := _lineage(known)) is not None:
        say(f"  follows {line.parent} by {line.handler}")
    if manifest is not None:
        if record is None:
            say(f"  status  {manifest.prediction.status}")
        if isinstance(deadline := manifest.prediction.raw.get("deadline"), str):
            say(f"  deadline {deadline}")
        _print_kept(manifest, where)
    for name, outcome in known.told.items():
        say(f"    {_outcome_line(name, outcome)}")
    for handler, child in _children(known):
        say(f"    followed by {child} ({handler})")


def _print_kept(manifest: Manifest, where: str) -> None:
    prediction = manifest.prediction
    say(f"  model   {prediction.model or '-'}")
    say(f"  kept in {where}/{object_name(prediction.kind, prediction.id, '')}")
    for file in manifest.files:
        say(f"    {_file_line(file)}")


def _outcome_line(name: str, outcome: Mapping[str, Any]) -> str:
    why = f" ({outcome['error']})" if outcome.get("error") else ""
    return f"told {name}: {outcome.get('outcome', 'unknown')}{why}, attempts: {outcome.get('attempts', '?')}"


def _file_line(file: KeptFile) -> str:
    if file.error is not None:
        return kept.missing(file)
    assert file.sha256 is not None
    return f"{file.name}  {file.size} bytes  {file.media_type}  sha256 {file.sha256[:16]}"
