"""What the demonstration says, and how it looks."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from app.core.manifest import KeptFile

_COLOURS = {"received": "blue", "kept": "green", "lost": "red", "told": "magenta"}
_LABEL_WIDTH = 22
_FILE_WIDTH = 14


def title(text: str) -> None:
    """Begin a part."""
    click.secho(f"\n{text}", bold=True)


def created(label: str, kind: str, identity: str) -> None:
    """One prediction that was asked for."""
    click.echo(f"   {label:{_LABEL_WIDTH}}  {kind:10}  {identity}")


def received(label: str, status: str) -> None:
    """Its webhook came in, and lies on the disk."""
    _step("received", label, f"it {status}; the event is on disk")


def kept(label: str, file: KeptFile) -> None:
    """One of its files is stored, or lost."""
    if file.sha256 is None:
        _step("lost", label, f"{file.pointer}: {file.error}")
    else:
        measure = f"{size(file.size or 0):>9}"
        _step("kept", label, f"{file.name:{_FILE_WIDTH}}{measure}   sha256 {file.sha256[:12]}")


def told(label: str, event: dict[str, Any]) -> None:
    """The handler got a genuine event."""
    _step("told", label, f"{event['type']} with {_files(len(event['data']['files']))}, signature verified")


def summary(predictions: int, files: int, total: int) -> None:
    """The end of it."""
    title(f"Done: {predictions} predictions, {_files(files)} kept ({size(total)}), each one handed on.")


def places(data: Path, folder: Path) -> None:
    """Where things lie; `folder` is that of one prediction."""
    title("Where things lie")
    _pairs(
        ("everything that was kept", str(data / "outputs")),
        ("one manifest: the prediction, its files and hashes", str(folder / "prediction.json")),
        ("what Outkeep logged meanwhile", str(data / "outkeep.log")),
    )


def try_next(data: Path, identity: str) -> None:
    """What to do once it has ended; `identity` is that of one prediction."""
    outkeep, of_data = _command(), f"OUTKEEP_DATA={shlex.quote(str(data))}"
    title("Try next")
    _pairs(
        ("look at the files", f"ls -R {shlex.quote(str(data / 'outputs'))}"),
        ("all about one prediction", f"{of_data} {outkeep} show {identity}"),
        ("the same, kept running", f"{outkeep} demo --stay"),
        (
            "the real thing, with your own Replicate account",
            f"REPLICATE_WEBHOOK_SECRET=whsec_... {outkeep} up",
        ),
    )


def try_meanwhile(data: Path, identity: str, url: str, link: str) -> None:
    """What to do while it keeps running; `url` is that of the receiver, `link` signs in to it, once."""
    outkeep, of_data = _command(), f"OUTKEEP_DATA={shlex.quote(str(data))}"
    title("Look at what was kept, in a browser")
    _pairs(
        ("a link that is good once", link),
        ("another one", f"{of_data} PORT={url.rpartition(':')[2]} {outkeep} open"),
    )
    title("Everything keeps running; Ctrl-C ends it. Try in another terminal")
    _pairs(
        ("what was received", f"{of_data} {outkeep} ls"),
        ("all about one prediction", f"{of_data} {outkeep} show {identity}"),
        ("whether all is well", f"curl {url}/readyz"),
    )


def size(count: int) -> str:
    """Bytes for people: `542 B`, `12.3 kB`."""
    number = float(count)
    for unit in ("B", "kB", "MB"):
        if number < 1000:  # noqa: PLR2004
            return f"{count} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def _step(verb: str, label: str, detail: str) -> None:
    click.echo(f"   {click.style(f'{verb:8}', fg=_COLOURS[verb])}  {label:{_LABEL_WIDTH}}  {detail}")


def _pairs(*pairs: tuple[str, str]) -> None:
    # Paths are long: what each is good for stands above it, so that every line can be copied whole.
    for meaning, text in pairs:
        click.echo(f"   {click.style(f'{meaning}:', dim=True)}\n      {text}")


def _command() -> str:
    """How `outkeep` is called here: it need not be on the search path."""
    if shutil.which("outkeep"):
        return "outkeep"
    path, here = Path(sys.executable).with_name("outkeep"), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"
