"""What pages say, worked out from what the API answers: plain functions over plain values."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from app.core import media
from app.core.findings import Level
from app.core.prediction import parse_time
from app.maintain.replay import Failure
from app.web import models
from app.web.rendering import ago, number, pretty, seconds

LONGEST_TEXT = 256 << 10
"""Bytes of a text file that a page shows."""

MOST_NEEDS = 8
_TOLD_ABOVE = ("handler ", "dead letters")
"""Checks of what has a card of its own, with a button."""

_PICTURES = frozenset({"png", "webp", "jpg", "gif", "avif", "bmp", "ico"})
_FILMS = frozenset({"mp4", "mov", "webm"})
_SOUNDS = frozenset({"wav", "mp3", "flac", "ogg", "opus", "m4a", "aac"})
_CODE = frozenset(
    {"json", "jsonl", "yaml", "csv", "tsv", "py", "xml", "log", "srt", "vtt", "ass", "obj", "mtl"}
)
_TEXTS = frozenset({"txt", "md", "lrc"}) | _CODE


@dataclass(frozen=True)
class Truth:
    """The one sentence; `tone` is `good`, `bad`, `warn` or `run`."""

    tone: str
    text: str


def truth(total: models.Group, running: Sequence[models.Running], given_up: int, now: datetime) -> Truth:
    """How it stands with all that came in the last day."""
    due = [one.summary.expires_at for one in running if one.summary.expires_at is not None]
    parts = []
    if total.lost:
        parts.append(f"{number(total.lost)} {'output' if total.lost == 1 else 'outputs'} lost")
    if given_up:
        parts.append(f"{number(given_up)} {'delivery' if given_up == 1 else 'deliveries'} given up")
    waiting = max(0, total.untold - given_up)
    if waiting:
        parts.append(f"{number(waiting)} not told yet")
    if due:
        first = ago(min(due), now) if min(due) > now else "now"
        parts.append(f"{len(due)} not kept yet, first expires {first}")
    if parts:
        text = ", ".join(parts)
        tone = "bad" if total.lost or given_up else "run"
        return Truth(tone, f"{text[0].upper()}{text[1:]}.")
    if not total.count:
        under_way = f" {len(running)} under way." if running else ""
        return Truth("run" if running else "good", f"Nothing has ended in the last day.{under_way}")
    all_of = f"All {number(total.count)} predictions" if total.count > 1 else "The one prediction"
    return Truth("good", f"{all_of} of the last day {'are' if total.count > 1 else 'is'} kept and told.")


@dataclass(frozen=True)
class Need:
    """Something that waits for a person: why, a button that does it, and the command that does the same."""

    tone: str
    title: str
    reason: str
    command: str
    action: str | None = None
    button: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    link: str | None = None


def needs(
    failures: Sequence[Failure],
    handlers: Sequence[models.HandlerView],
    findings: Sequence[models.Check],
    total: models.Group,
) -> list[Need]:
    """What needs somebody, the worst first."""
    found = [*_lost(total), *_given_up(failures, handlers), *_off(handlers)]
    found += [
        Need(
            "bad" if one.level is Level.FAIL else "warn",
            one.check,
            one.detail,
            "outkeep doctor",
            link="/checks",
        )
        for one in sorted(findings, key=lambda one: one.level is not Level.FAIL)
        if one.level is not Level.OK and not one.check.startswith(_TOLD_ABOVE)
    ]
    return found[:MOST_NEEDS]


def _lost(total: models.Group) -> Iterator[Need]:
    if total.lost:
        what = (
            f"{number(total.lost)} {'output was' if total.lost == 1 else 'outputs were'} lost in the last day"
        )
        reason = "They could not be fetched within the hour that Replicate keeps them; each one says why."
        yield Need("bad", what, reason, "outkeep ls --lost", link="/predictions?lost=true")


def _given_up(failures: Sequence[Failure], handlers: Sequence[models.HandlerView]) -> Iterator[Need]:
    for name in dict.fromkeys(one.handler for one in failures):
        those = [one for one in failures if one.handler == name]
        latest = next((one.error for one in those if one.error), None) or "no reason was left"
        state = next((one.state for one in handlers if one.name == name), None)
        if name is None:
            title = f"{number(len(those))} could not be kept"
            yield Need(
                "bad",
                title,
                latest,
                "outkeep replay --failed",
                "/failures/replay",
                "Try again …",
                {},
                "/failures",
            )
        elif state != "off":
            title = f"{name} missed {number(len(those))} event{'' if len(those) == 1 else 's'}"
            yield Need(
                "bad", title, f"Given up after every attempt. The latest reason: {latest}",
                f"outkeep replay --failed --handler {name}", "/failures/replay", "Replay …",
                {"handler": name}, f"/failures?handler={name}",
            )  # fmt: skip


def _off(handlers: Sequence[models.HandlerView]) -> Iterator[Need]:
    for one in handlers:
        if one.state == "off":
            missed = f" {number(one.dead)} wait among the dead letters." if one.dead else ""
            reason = f"It answered 410, and is told nothing more.{missed}"
            yield Need(
                "bad", f"{one.name} is switched off", reason, f"outkeep handlers enable {one.name}",
                f"/handlers/{one.name}/enable", "Switch on", {}, f"/handlers#{one.name}",
            )  # fmt: skip
        elif one.state == "slow":
            reason = (
                "It did not answer several times in a row, and gets one event every 30 seconds until it does."
            )
            yield Need(
                "warn",
                f"{one.name} does not answer",
                reason,
                "outkeep handlers",
                link=f"/handlers#{one.name}",
            )


@dataclass(frozen=True)
class Shown:
    """A stored file on a page. `shown_as`: `picture`, `film`, `sound`, `text` or `file`."""

    name: str
    url: str
    size: int
    media_type: str | None
    pointer: str
    shown_as: str
    text: str | None = None
    is_code: bool = False


def shown_as(name: str, encoding: str | None = None) -> str:
    """How a browser shows a file of this name; what could run in it is never more than a file."""
    extension = name.rpartition(".")[2]
    if extension in _TEXTS:
        return "file" if encoding else "text"
    for word, extensions in (("picture", _PICTURES), ("film", _FILMS), ("sound", _SOUNDS)):
        if extension in extensions and media.is_inline_safe(extension):
            return word
    return "file"


def shown(file: models.File, text: str | None = None) -> Shown:
    """A file with its text, where that was read."""
    extension = file.name.rpartition(".")[2]
    if text is not None and extension == "json":
        with suppress(ValueError, RecursionError):
            text = pretty(json.loads(text))
    return Shown(
        file.name, file.url, file.size, file.media_type, file.pointer, shown_as(file.name, file.encoding),
        text, extension in _CODE,
    )  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One key of an input. `before`: what the parent had in its place, None: the same, or no parent."""

    key: str
    text: str
    is_text: bool
    before: str | None = None
    is_changed: bool = False
    picture: str | None = None


def items(given: Any, parents: Any, pictures: Mapping[str, str]) -> list[Item]:
    """The input key by key, the prompt first; `pictures` are links to stored inputs by their pointers."""
    if not isinstance(given, dict):
        return []
    before = parents if isinstance(parents, dict) else None
    found = []
    for key, value in sorted(given.items(), key=lambda pair: "prompt" not in pair[0]):
        is_changed = before is not None and before.get(key) != value
        old = before.get(key) if before is not None and is_changed else None
        found.append(
            Item(
                key, pretty(value), isinstance(value, str), None if old is None else pretty(old), is_changed,
                pictures.get(f"/input/{key.replace('~', '~0').replace('/', '~1')}"),
            )
        )  # fmt: skip
    return found


def changed(
    keys: Sequence[str], values: Sequence[str], before: Sequence[str], texts: Sequence[str]
) -> dict[str, Any]:
    """What a form changes of an input; raises `ValueError` that names a key whose value is no JSON."""
    found: dict[str, Any] = {}
    for key, *pair, is_text in zip(keys, values, before, texts, strict=False):
        value, was = (text.replace("\r\n", "\n") for text in pair)
        if value == was:
            continue
        try:
            found[key] = value if is_text else json.loads(value)
        except ValueError:
            raise ValueError(f"{key}: write it as JSON, as it was") from None
    return found


@dataclass(frozen=True)
class Step:
    """One line of the timeline. `replay` names a handler that can be told again."""

    what: str
    at: datetime | None
    detail: str = ""
    tone: str = ""
    after: str = ""
    replay: str | None = None


def timeline(whole: models.Whole, attempts: models.Attempts) -> list[Step]:
    """From created to told, with every attempt."""
    manifest = whole.manifest or {}
    raw = manifest.get("prediction", {})
    created, started, completed = (
        parse_time(raw.get(f"{word}_at")) for word in ("created", "started", "completed")
    )
    received = parse_time(manifest.get("received_at")) or (whole.record.received_at if whole.record else None)
    stored = parse_time(manifest.get("stored_at"))
    how = {
        "webhook": "by webhook",
        "cog": "from Cog",
        "run": "by outkeep run",
        "reconcile": "found at Replicate",
    }
    source = str(manifest.get("source") or (whole.record.source if whole.record else ""))
    steps = [
        Step("Created", created),
        Step("Started", started, after=_after(started, created)),
        Step(f"Ended: {raw.get('status', '')}", completed, after=_after(completed, started or created),
             tone="bad" if raw.get("status") in {"failed", "aborted"} else ""),
        Step("Received", received, how.get(source, source), after=_after(received, completed)),
        Step("Kept", stored, f"{len(whole.files)} files" if len(whole.files) != 1 else "1 file",
             tone="bad" if whole.lost else "", after=_after(stored, received)),
    ]  # fmt: skip
    found = [step for step in steps if step.at is not None]
    if whole.manifest is None and whole.record is not None:
        error = whole.record.error or ""
        failed = whole.record.state.value == "failed"
        found.append(Step("Not kept" if failed else "Not kept yet", None, error, "bad" if failed else "wait"))
    for job in attempts.results:
        found += _told(job, stored)
    return found


def _told(job: models.HandlerAttempts, stored: datetime | None) -> Iterator[Step]:
    again = f", replay {job.replay}" if job.replay else ""
    for one in job.attempts:
        answer = one.error or (str(one.status) if one.status else "done")
        detail = f"{answer}, {one.milliseconds} ms" + (f". {one.detail}" if one.detail else "")
        yield Step(
            f"{job.handler}{again}", one.at, detail, "bad" if one.error else "", _after(one.at, stored)
        )
    match job.outcome:
        case "pending":
            due = (
                f"next attempt {job.next_at.isoformat(timespec='seconds')}"
                if job.next_at
                else "an attempt is due"
            )
            yield Step(f"{job.handler}{again} is to be told", None, due, "wait")
        case "dead":
            yield Step(f"{job.handler}{again} was given up", None, "", "bad", replay=job.handler)
        case "off":
            yield Step(f"{job.handler} is switched off", None, "", "bad", replay=None)
        case _ if not job.attempts:
            yield Step(f"{job.handler}{again}: {job.outcome}", None, f"attempts: {job.count}")


def _after(moment: datetime | None, before: datetime | None) -> str:
    if moment is None or before is None or moment < before:
        return ""
    return f"{seconds((moment - before).total_seconds())} later"


@dataclass(frozen=True)
class Bar:
    """One day of a chart, in units of its view box."""

    x: float
    width: float
    y: float
    height: float
    bad: float
    label: str
    name: str
    is_named: bool
    count: int
    failed: int


@dataclass(frozen=True)
class Chart:
    """Bars over a base line."""

    width: int
    height: int
    base: int
    most: int
    bars: Sequence[Bar]


def chart(groups: Sequence[models.Group], since: datetime, now: datetime) -> Chart:
    """Counts by day, from `since` to `now`, days without any included."""
    width, height, base, top = 960, 160, 138, 18
    by_day = {one.key: one for one in groups}
    first, last = since.date(), now.date()
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    most = max([1, *(one.count for one in groups)])
    step = width / len(days)
    every = max(1, len(days) // 12)
    bars = []
    for number_, day in enumerate(days):
        group = by_day.get(day.isoformat())
        count, failed = (group.count, group.failed) if group else (0, 0)
        tall = round((base - top) * count / most, 1)
        bars.append(
            Bar(
                round(number_ * step + step * 0.12, 1), round(min(step * 0.76, 60), 1), base - tall, tall,
                round((base - top) * failed / most, 1), day.isoformat(), day.strftime("%-d %b"),
                number_ % every == 0, count, failed,
            )
        )  # fmt: skip
    return Chart(width, height, base, most, bars)
