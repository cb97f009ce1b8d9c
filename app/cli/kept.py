"""How `outkeep run` shows a prediction: while it runs, and what was kept of it."""

import json
from dataclasses import asdict
from typing import Any, Protocol

import click

from app.cli.terminal import flow, say
from app.core.errors import Permanent
from app.core.manifest import KeptFile, Manifest
from app.core.names import Kind, object_name
from app.core.outputs import joined_text
from app.core.prediction import Prediction
from app.core.progress import percentage
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


def bar(percent: int, *, width: int = 30) -> str:
    """`[#####     ]  45%`."""
    filled = width * percent // 100
    return f"[{'#' * filled}{' ' * (width - filled)}] {percent:3}%"


def grown(before: str, after: str) -> str:
    """What to print so that `after` stands where `before` does; all of it when it did not merely grow."""
    return after.removeprefix(before) if after.startswith(before) else f"\n{after}"


_CLEAR = "\r\x1b[K"
_STEP = 10


class Display(Protocol):
    """What is told of a prediction, in this order."""

    def show(self, prediction: Prediction) -> None:
        """How it is now."""

    def warn(self, text: str) -> None:
        """Something takes long, or failed for a while."""

    def end(self) -> None:
        """Leave the cursor at the begin of a line; `show` may come again."""

    @property
    def has_shown_text(self) -> bool:
        """Whether text that it made was printed already."""


class Lines:
    """On standard error, a line when the status or the tenth of the way changes."""

    has_shown_text = False

    def __init__(self) -> None:
        self._latest = ""

    def show(self, prediction: Prediction) -> None:
        """Print a line unless it would be the same as before."""
        percent = percentage(prediction.logs)
        state = prediction.status
        if percent is not None and not prediction.is_terminal:
            state += f" {percent // _STEP * _STEP}%"
        if state != self._latest:
            say(f"{prediction.id} {state}", err=True)
        self._latest = state

    def warn(self, text: str) -> None:
        """Print it."""
        say(text, err=True)

    def end(self) -> None:
        """Nothing is left open."""


class Terminal:
    """A bar on standard error; text on standard output as it grows, from then on without the bar."""

    def __init__(self) -> None:
        self._text = ""
        self._line = ""

    @property
    def has_shown_text(self) -> bool:
        """Whether it has begun."""
        return bool(self._text)

    def show(self, prediction: Prediction) -> None:
        """Print what is new."""
        text = joined_text(prediction.output)
        if text is not None and text != self._text:
            self._redraw("")
            flow(grown(self._text, text))
            self._text = text
        elif not self._text:
            percent = percentage(prediction.logs)
            shown = f" {bar(percent)}" if percent is not None else ""
            self._redraw(f"{prediction.status}{shown}")

    def warn(self, text: str) -> None:
        """Print it on a line of its own."""
        self.end()
        say(text, err=True)

    def end(self) -> None:
        """Take the bar away, or end the line of text."""
        self._redraw("")
        if self._text and not self._text.endswith("\n"):
            click.echo()

    def _redraw(self, line: str) -> None:
        if line != self._line:
            click.echo(f"{_CLEAR}{line}", nl=False, err=True)
        self._line = line
