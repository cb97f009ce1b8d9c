"""The command `show`: all that is known of one prediction."""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import click
from redis.exceptions import RedisError

from app.cli.look import open_records, summary
from app.core.errors import ConfigurationError, Permanent
from app.core.manifest import KeptFile, Manifest
from app.core.names import ID, Kind, object_name
from app.records import Record
from app.settings import Settings, load
from app.storage import Storage


@click.command()
@click.argument("prediction_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Manifest, record and outcomes as one JSON object.")
def show(prediction_id: str, *, as_json: bool) -> None:
    """Show one prediction or training: its state, its files, and who was told.

    \b
    Example:
      outkeep show ype2b3w02xrme0cqadzrms82nm
    """
    if not ID.fullmatch(prediction_id):
        raise click.BadParameter("an id has 1 to 64 letters, digits, '_' or '-'")
    settings = load(os.environ)
    storage = Storage(settings.storage_url)
    records = _records(settings, prediction_id)
    found = False
    for kind in Kind:
        manifest = storage.read_manifest(kind, prediction_id)
        record = records.get(kind)
        if manifest is None and record is None:
            continue
        found = True
        told = _outcomes(storage, kind, prediction_id)
        if as_json:
            document = json.loads(manifest.to_json()) if manifest else None
            known = summary(record) if record else None
            click.echo(json.dumps({"record": known, "manifest": document, "told": told}, indent=1))
        else:
            click.echo(f"{kind} {prediction_id}")
            _print(record, manifest, storage.url)
            _lines(_outcome_line(name, outcome) for name, outcome in told.items())
    if not found:
        raise Permanent("unknown", f"nothing is known of {prediction_id}")


def _records(settings: Settings, prediction_id: str) -> dict[Kind, Record | None]:
    # Storage alone is enough to show what was kept, so a Redis that is not there does not matter.
    try:
        records = open_records(settings)
        return {kind: records.get(kind, prediction_id) for kind in Kind}
    except ConfigurationError:
        return {}
    except RedisError as error:
        click.echo(f"Redis does not answer ({type(error).__name__}): shown from storage alone", err=True)
        return {}


def _outcomes(storage: Storage, kind: Kind, prediction_id: str) -> dict[str, Any]:
    prefix = object_name(kind, prediction_id, "told-")
    outcomes = {}
    for name in sorted(storage.names(object_name(kind, prediction_id, "").rstrip("/"))):
        data = storage.get(name) if name.startswith(prefix) else None
        if data is not None:
            outcomes[name.removeprefix(prefix).removesuffix(".json")] = json.loads(data)
    return outcomes


def _print(record: Record | None, manifest: Manifest | None, where: str) -> None:
    if record is not None:
        click.echo(f"  status  {record.status}\n  state   {record.state}")
        if record.error is not None:
            click.echo(f"  error   {record.error}")
    if manifest is None:
        return
    prediction = manifest.prediction
    if record is None:
        click.echo(f"  status  {prediction.status}")
    click.echo(f"  model   {prediction.model or '-'}")
    click.echo(f"  kept in {where}/{object_name(prediction.kind, prediction.id, '')}")
    _lines(_file_line(file) for file in manifest.files)


def _lines(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(f"    {line}")


def _outcome_line(name: str, outcome: Mapping[str, Any]) -> str:
    return f"told {name}: {outcome.get('outcome', 'unknown')}, attempts: {outcome.get('attempts', '?')}"


def _file_line(file: KeptFile) -> str:
    if file.error is not None:
        return f"LOST {file.pointer}: {file.error}"
    assert file.sha256 is not None
    return f"{file.name}  {file.size} bytes  {file.media_type}  sha256 {file.sha256[:16]}"
