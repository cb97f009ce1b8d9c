"""Run a prediction from the command line: create it, follow it, cancel it when that is wanted."""

import asyncio
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from app.cli import kept
from app.cli.live import Display, Lines, Terminal
from app.cli.patience import interrupts_held, patiently
from app.cli.ready import Ready, prepare
from app.cli.terminal import say
from app.core.errors import Permanent, Transient, Unusable
from app.core.manifest import Manifest
from app.core.models import Model
from app.core.prediction import Prediction
from app.core.request import LocalFile, local_files, with_urls
from app.replicate.answers import Object
from app.replicate.client import connected
from app.replicate.creation import UNCERTAIN, creating
from app.replicate.creation_limit import CreationLimit
from app.storage.store import Storage

EVENTS = ("start", "output", "logs", "completed")
"""The webhooks that are asked for: all of them."""


def run(
    model: Model,
    given: dict[str, Any],
    context: dict[str, str],
    *,
    cancel_after: str | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """What the command does once its arguments are read; raises `Permanent` unless all went well."""
    ready = prepare(context)
    on_terminal = sys.stdout.isatty() and sys.stderr.isatty() and not as_json
    running = _Running(ready, Terminal() if on_terminal else Lines(), cancel_after)
    given = running.uploaded(given)
    raw, interrupted = patiently(lambda: running.create(model, given), running.display.warn)
    if no_wait:
        _say_created(raw, ready.storage, as_json=as_json)
        return
    running.display.warn(f"prediction {raw['id']}")
    manifest = running.finish(raw["id"], interrupted=interrupted)
    running.display.end()
    kept.show(manifest, ready.storage, as_json=as_json, with_text=not running.display.has_shown_text)
    kept.require_success(manifest)


@dataclass(frozen=True)
class _Running:
    """One run. Each step has a loop of its own, so that Ctrl-C is heard between them and in most of them."""

    ready: Ready
    display: Display
    cancel_after: str | None

    def uploaded(self, given: dict[str, Any]) -> dict[str, Any]:
        """The input with the URL of each local file, once all of them are uploaded."""
        urls: dict[LocalFile, str] = {}
        for file in dict.fromkeys(local_files(given)):
            urls[file] = patiently(partial(self._upload, file), self.display.warn)
        result: dict[str, Any] = with_urls(given, urls)
        return result

    def _upload(self, file: LocalFile) -> str:
        path = Path(file.path)
        # The name of a file may be any bytes, and that of an upload is text.
        name = path.name.encode(errors="replace").decode()
        self.display.warn(f"uploading {name}")

        async def send() -> str:
            async with creating(self.ready.settings.api_url, self.ready.token) as creator:
                return await creator.upload(path, name=name, media_type=None)

        return asyncio.run(send())

    def create(self, model: Model, given: dict[str, Any]) -> tuple[Object, bool]:
        """Create it and let Outkeep know; its object, and whether Ctrl-C was pressed meanwhile."""
        wait = CreationLimit(self.ready.redis).take()
        if wait > 0:
            reason = "Replicate takes no more creations in this minute"
            raise Transient("creations_limited", reason, retry_after=wait)
        with interrupts_held(self.display.warn) as interrupts:
            raw = asyncio.run(self._create(model, given))
            try:
                # Should this process die now, Outkeep knows what to look for.
                self.ready.follower(self.display.warn).hand_in(raw)
            except (Transient, Unusable) as error:  # it is paid for: go on
                self.display.warn(f"not recorded yet: {error.message}")
        return raw, bool(interrupts)

    async def _create(self, model: Model, given: dict[str, Any]) -> Object:
        webhook = self.ready.webhook
        async with creating(self.ready.settings.api_url, self.ready.token) as creator:
            try:
                return await creator.create(
                    model, given, webhook=webhook, events=EVENTS, cancel_after=self.cancel_after
                )
            except Transient as error:
                if error.code in UNCERTAIN:
                    hint = "it may have been created all the same, look at `outkeep ls` before you try again"
                    raise Permanent(error.code, f"{error.message}; {hint}") from error
                raise

    def finish(self, prediction_id: str, *, interrupted: bool) -> Manifest:
        """Follow it to its end and until it is kept, however often Ctrl-C is pressed."""
        prediction = self._until_end(prediction_id, interrupted=interrupted)
        try:
            return asyncio.run(self.ready.follower(self.display.warn).until_kept(prediction))
        except KeyboardInterrupt:
            self.display.end()
            hint = f"see `outkeep show {prediction_id}`"
            raise Permanent(
                "left", f"{prediction_id} has ended, and Outkeep keeps what it made; {hint}"
            ) from None

    def _until_end(self, prediction_id: str, *, interrupted: bool) -> Prediction:
        while True:
            try:
                if not interrupted:
                    return asyncio.run(self._follow(prediction_id))
            except KeyboardInterrupt:
                self.display.end()
            interrupted = False
            if not _wants_to_cancel():
                raise Permanent("left", f"{prediction_id} goes on; see `outkeep show {prediction_id}`")
            asyncio.run(self._cancel(prediction_id))

    async def _follow(self, prediction_id: str) -> Prediction:
        follower = self.ready.follower(self.display.warn)
        async with connected(self.ready.settings.api_url, self.ready.token) as api:
            return await follower.until_end(api, prediction_id, self.display.show)

    async def _cancel(self, prediction_id: str) -> None:
        async with creating(self.ready.settings.api_url, self.ready.token) as creator:
            await creator.cancel(prediction_id)


def _wants_to_cancel() -> bool:
    """Ask whoever sits at the terminal; nobody there means no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    try:
        return click.confirm("Cancel the prediction?", default=False, err=True)
    except click.Abort:
        click.echo(err=True)
        return False


def _say_created(raw: Object, storage: Storage, *, as_json: bool) -> None:
    place = kept.folder(raw["id"], storage)
    document = {"id": raw["id"], "status": raw.get("status"), "kept_in": place}
    say(json.dumps(document) if as_json else str(raw["id"]))
