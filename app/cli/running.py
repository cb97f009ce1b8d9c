"""How `outkeep run` waits for a prediction, and what Ctrl-C does meanwhile."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

from app import deployment
from app.accept import queues
from app.accept.claim_check import ClaimCheck
from app.accept.records import Records
from app.cli import kept
from app.cli.kept import Display, Lines, Terminal
from app.cli.opening import TIMEOUT
from app.cli.terminal import say
from app.clock import Clock, clock_of
from app.core.bucket_faults import redis_fault
from app.core.context import context_keys, seal, webhook_url
from app.core.errors import ConfigurationError, Permanent, Transient, Unusable
from app.core.manifest import Manifest
from app.core.names import PERSIST_QUEUE, Kind
from app.core.prediction import Prediction
from app.core.request import LocalFile, Model, local_files, with_urls
from app.replicate.client import Object, connected
from app.replicate.creation import UNCERTAIN, CreationLimit, creating
from app.replicate.following import Follower
from app.settings import Settings
from app.storage.identity import require
from app.storage.store import Storage
from app.valkey.client import connect

TRIES = 10
LONGEST_WAIT = 60.0

_NOT_DONE = frozenset({"api_busy", "creations_limited"})
"""Codes after which nothing was created, and nothing else is wrong."""

_Result = TypeVar("_Result")


def patiently(
    call: Callable[[], _Result], say: Callable[[str], None], *, sleep: Callable[[float], None] = time.sleep
) -> _Result:
    """Do it again for as long as there are too many requests."""
    for number in range(1, TRIES):
        try:
            return call()
        except Transient as error:
            if error.code not in _NOT_DONE:
                raise
            wait = min(error.retry_after or 2.0**number, LONGEST_WAIT)
            say(f"waiting {wait:.0f} s: {error.message}")
            sleep(wait)
    return call()


@contextmanager
def interrupts_held(say: Callable[[str], None]) -> Iterator[list[int]]:
    """Note Ctrl-C, say so, and go on: what is half done here could cost money and be known to nobody."""
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            with suppress(RuntimeError):  # it came in the middle of another line
                say("waiting until it is known whether the prediction was created")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before)


STORAGE_PATIENCE = 60.0
"""Seconds that the storage may take for a large body."""


@dataclass(frozen=True)
class Ready:
    """All of it."""

    settings: Settings
    token: str
    redis: Redis
    clock: Clock
    context: dict[str, str]
    webhook: str | None

    @property
    def storage(self) -> Storage:
        """Where it will be kept."""
        return Storage(self.settings.storage_url)

    def follower(self, warn: Callable[[str], None]) -> Follower:
        """What follows the prediction that is about to be created."""
        records, floor = Records(self.redis, ttl=self.settings.record_ttl), self.settings.disk_floor
        return Follower(
            redis=self.redis,
            records=records,
            storage=self.storage,
            claims=ClaimCheck(
                self.storage, records, patience=STORAGE_PATIENCE, disk_floor=floor, clock=self.clock
            ),
            clock=self.clock,
            context=self.context or None,
            awaits_webhook=self.webhook is not None,
            warn=warn,
        )


def prepare(context: dict[str, str]) -> Ready:
    """Raises `ConfigurationError` for whatever is missing, since creating comes after this."""
    settings, handlers = deployment.prepare(os.environ)
    if settings.api_token is None:
        raise ConfigurationError(["REPLICATE_API_TOKEN: not set, and nothing can be run without it"])
    found = deployment.connect(settings, handlers)
    redis = connect(found.redis_url, timeout=TIMEOUT)
    _require_workers(redis, Storage(settings.storage_url))
    keys = context_keys(found.secret_keys)
    try:
        seal(context, keys)
    except Permanent as error:
        raise click.BadParameter(error.message, param_hint="--context") from None
    webhook = None
    if settings.public_url is not None:
        webhook = webhook_url(settings.public_url, Kind.PREDICTION, context or None, keys)
    return Ready(settings, settings.api_token.get_secret_value(), redis, clock_of(redis), context, webhook)


def _require_workers(redis: Redis, storage: Storage) -> None:
    try:
        require(redis, storage)
        count = queues.worker_count(PERSIST_QUEUE, redis)
    except AuthenticationError:
        raise
    except RedisError as error:
        wrong = redis_fault(str(error))
        problem = f"Redis: {wrong}" if wrong else f"Redis does not answer ({type(error).__name__})"
        problem += ", so nothing could be kept"
        raise ConfigurationError([f"{problem}; start `outkeep up`"]) from None
    if not count:
        problem = "no worker keeps outputs here, so nothing would be kept"
        raise ConfigurationError([f"{problem}; start `outkeep up`, or `outkeep work persist`"])


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
        document = {
            "id": raw["id"],
            "status": raw.get("status"),
            "kept_in": kept.folder(raw["id"], ready.storage),
        }
        say(json.dumps(document) if as_json else str(raw["id"]))
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
