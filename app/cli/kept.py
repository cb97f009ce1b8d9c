"""What a finished prediction left: shown on standard output, and judged for the exit code."""

import json
from dataclasses import asdict
from typing import Any

import click

from app.cli.terminal import flow, say
from app.core.errors import Permanent
from app.core.manifest import KeptFile, Manifest
from app.core.names import Kind, object_name
from app.core.outputs import joined_text
from app.storage.store import Storage


def folder(prediction_id: str, storage: Storage) -> str:
    """Where all of it lies: a path, or the URL of a store."""
    place = object_name(Kind.PREDICTION, prediction_id, "").rstrip("/")
    return str(storage.folder / place) if storage.folder else f"{storage.url}/{place}"


def show(manifest: Manifest, storage: Storage, *, as_json: bool, with_text: bool) -> None:
    """Print what was made, text first, and where it lies."""
    place = folder(manifest.prediction.id, storage)
    if as_json:
        click.echo(json.dumps(_document(manifest, place)))
        return
    text = joined_text(manifest.prediction.output)
    if text is not None and with_text:
        flow(text if text.endswith("\n") else f"{text}\n")
    for file in manifest.files:
        say(_line(file, place))
    for link in manifest.links:
        say(f"link {link.pointer}: {link.url}")


def _line(file: KeptFile, place: str) -> str:
    if file.error is not None:
        return missing(file)
    return f"{place}/{file.name}  {file.size} bytes  sha256 {file.sha256}"


def missing(file: KeptFile) -> str:
    """The line of a file that is not there; only an output is a loss."""
    return f"{'not kept' if file.is_input else 'LOST'} {file.pointer}: {file.error}"


def _document(manifest: Manifest, place: str) -> dict[str, Any]:
    prediction = manifest.prediction
    return {
        "id": prediction.id,
        "status": prediction.status,
        "model": prediction.model,
        "version": prediction.version,
        "output": manifest.output,
        "files": [file.to_object() for file in manifest.kept],
        "links": [asdict(link) for link in manifest.links],
        "lost": [file.to_object() for file in (*manifest.lost, *manifest.lost_inputs)],
        "error": prediction.raw.get("error"),
        "metrics": prediction.raw.get("metrics"),
        "kept_in": place,
    }


def require_success(manifest: Manifest) -> None:
    """Raise `Permanent` unless it succeeded and every output is kept."""
    prediction = manifest.prediction
    if prediction.status != "succeeded":
        error = prediction.raw.get("error")
        raise Permanent(
            "not_succeeded", f"{prediction.id} {prediction.status}{f': {error}' if error else ''}"
        )
    if manifest.lost:
        raise Permanent("lost", f"{len(manifest.lost)} outputs of {prediction.id} are lost")
