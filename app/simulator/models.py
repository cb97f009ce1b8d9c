"""The models of the simulator: what they take, how long they run, and what they make."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from app.core.errors import Rejected
from app.core.names import Kind
from app.simulator.film import mp4
from app.simulator.music import samples, wav
from app.simulator.pictures import animation, png, waveform


def zip_archive(files: Mapping[str, bytes]) -> bytes:
    """A zip of name → content, dated 1980, so that the bytes never change."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return target.getvalue()


def tar_archive(files: Mapping[str, bytes]) -> bytes:
    """An uncompressed tar of name → content, dated 1970, so that the bytes never change."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


Object = dict[str, Any]

_WORDS = ("A", " river", " of", "", " light", ",", " and", " no", " bridge", ".")
_STEPS = 3
_MAX_SECONDS = 86_400
_MAX_OUTPUTS = 250


@dataclass(frozen=True, slots=True)
class Media:
    """A file inside an output, before it has a URL; with `inline` it becomes a `data:` URI."""

    name: str
    content: bytes
    content_type: str
    inline: bool = False


@dataclass(frozen=True, slots=True)
class Given:
    """A file inside an output: the one that came in as `key` of the input, byte for byte."""

    key: str


@dataclass(frozen=True, slots=True)
class Model:
    """A behaviour. `output` makes the output tree (JSON with `Media` leaves) from the input.

    `streams`: the output is a list that grows while the model runs. `seconds` overrides the pace.
    `status` and `error` are how it ends; `schema` describes the output as Cog does. `official`: it runs by
    its name alone; others need a version.
    """

    output: Callable[[Object], Any]
    streams: bool = False
    status: str = "succeeded"
    error: str | None = None
    seconds: float | None = None
    schema: Mapping[str, Any] = field(default_factory=dict)
    official: bool = True


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a running prediction shows at one moment."""

    output: Any
    logs: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How one prediction will go; `seconds` is None when the simulator's pace decides."""

    output: Any
    streams: bool
    status: str
    error: str | None
    seconds: float | None

    def snapshots(self, output: Any) -> list[Snapshot]:
        """Every state in order, the last being the end; `output` is `self.output` with URLs in it."""
        steps = len(output) if self.streams and output else _STEPS
        logs = [_progress(step, steps) for step in range(1, steps + 1)]
        shown = [output[:step] if self.streams else None for step in range(1, steps)]
        return [Snapshot(value, "".join(logs[: step + 1])) for step, value in enumerate([*shown, output])]


def plan(kind: Kind, name: str, given: Object, *, destination: str | None = None) -> Plan:
    """The plan of model `name` (`owner/name`) for an input; unknown models draw one image.

    `destination` (`owner/name`) is where a training puts its version. Raises `Rejected` (422) when
    `seconds` or `num_outputs` of the input are out of range.
    """
    model = model_named(name)
    seconds = model.seconds
    if "seconds" in given:
        seconds = _number(given, "seconds", default=0, low=0, high=_MAX_SECONDS)
    ends_well = model.status == "succeeded"
    if kind is Kind.TRAINING:
        output = _trained(destination or name, given) if ends_well else None
        return Plan(output, streams=False, status=model.status, error=model.error, seconds=seconds)
    return Plan(model.output(given), model.streams, model.status, model.error, seconds)


def model_named(name: str) -> Model:
    """The behaviour of `owner/name`. Raises `Rejected` (404) for a name of `outkeep/` that is not here."""
    if name.startswith("outkeep/") and name not in MODELS:
        raise Rejected("not_found", "The requested resource could not be found.", status=404)
    return MODELS.get(name, MODELS["outkeep/image"])


def version_id(name: str) -> str:
    """The one version of a simulated model: 64 hex digits."""
    return sha256(name.encode()).hexdigest()


def model_of_version(version: str) -> str:
    """The model name of `owner/name:id`, `owner/name` or a bare id; an unknown id draws one image."""
    if "/" in version:
        return version.partition(":")[0]
    return next((name for name in MODELS if version_id(name) == version), "outkeep/image")


def _number(given: Object, key: str, *, default: float, low: float, high: float) -> float:
    value = given.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Rejected("input", f"- input.{key}: must be a number from {low} to {high}", status=422)
    return value


def _count(given: Object, default: int) -> int:
    return int(_number(given, "num_outputs", default=default, low=1, high=_MAX_OUTPUTS))


def _progress(step: int, steps: int) -> str:
    # The shape of tqdm's bar: the official client reads `prediction.progress` from it.
    filled = 10 * step // steps
    return f"{100 * step // steps:3}%|{'#' * filled}{' ' * (10 - filled)}| {step}/{steps}\n"


def _prompt(given: Object) -> str:
    return str(given.get("prompt", ""))


def _theme(given: Object, *more: object) -> str:
    """What decides how an output looks and sounds."""
    seed = [given["seed"]] if "seed" in given else []
    return "#".join(map(str, (_prompt(given), *seed, *more)))


def _picture(given: Object, index: int = 0, name: str | None = None) -> Media:
    content = png(_theme(given, index))
    return Media(name or f"out-{index}.png", content, "image/png")


def _pictures(given: Object, default: int = 4) -> list[Media]:
    return [_picture(given, index) for index in range(_count(given, default))]


def _sound(given: Object, name: str, base: float) -> Media:
    return Media(f"{name}.wav", wav(samples(_theme(given, name), base=base)), "audio/wav")


def _separate(given: Object) -> Object:
    return {"vocals": _sound(given, "vocals", 440), "bass": _sound(given, "bass", 110)}


def _music(given: Object) -> Object:
    heard = samples(_theme(given))
    return {
        "audio": Media("music.wav", wav(heard), "audio/wav"),
        "waveform": Media("waveform.png", waveform(heard, _theme(given)), "image/png"),
    }


def _inline(given: Object) -> Media:
    return Media("out.png", png(_theme(given), side=128), "image/png", inline=True)


def _tokens(given: Object) -> list[str]:
    wanted = _count(given, len(_WORDS))
    return [_WORDS[index % len(_WORDS)] for index in range(wanted)]


def _odd_names(given: Object) -> list[Media]:
    names = ("out-0.png", "out-0.png", "a (1) ~ é.png", "no-extension", "100%.png")
    return [_picture(given, index, name) for index, name in enumerate(names)]


def _mixed(given: Object) -> Object:
    return {
        "caption": f"https://example.com is mentioned, not linked: {_prompt(given)}",
        "scores": [0.25, 0.5, None, True],
        "layers": {"front": {"mask": {"image": _picture(given), "box": [1, 2, 3, 4]}}},
        "archive": Media("all.zip", zip_archive({"readme.txt": b"simulated\n"}), "application/zip"),
        "notes": Media("notes.txt", b"simulated\n", "text/plain"),
        "empty": {},
    }


def _trained(destination: str, given: Object) -> Object:
    files = {"lora.safetensors": sha256(repr(sorted(given)).encode()).digest() * 64, "special.json": b"{}"}
    weights = Media("trained_model.tar", tar_archive(files), "application/x-tar")
    return {"version": f"{destination}:{version_id(destination)}", "weights": weights}


def _nothing(_given: Object) -> None:
    return None


_URI: Object = {"type": "string", "format": "uri"}
_URIS: Object = {"type": "array", "items": _URI}
_TEXTS: Object = {
    "type": "array",
    "items": {"type": "string"},
    "x-cog-array-type": "iterator",
    "x-cog-array-display": "concatenate",
}

MODELS: Mapping[str, Model] = {
    "outkeep/image": Model(_picture, schema=_URI),
    "outkeep/images": Model(_pictures, schema=_URIS),
    "outkeep/llama": Model(_tokens, streams=True, schema=_TEXTS),
    "outkeep/caption": Model(lambda given: f"caption: {_prompt(given)}", schema={"type": "string"}),
    "outkeep/animation": Model(
        lambda given: Media("out.png", animation(_theme(given)), "image/png"), schema=_URI
    ),
    "outkeep/music": Model(_music),
    "outkeep/separate": Model(_separate),
    "outkeep/video": Model(lambda given: Media("out.mp4", mp4(_theme(given)), "video/mp4"), schema=_URI),
    "outkeep/files": Model(lambda given: [{"file": item} for item in _pictures(given, 2)]),
    "outkeep/nested": Model(lambda given: [[item] for item in _pictures(given, 2)]),
    "outkeep/mixed": Model(_mixed),
    "outkeep/names": Model(_odd_names, schema=_URIS),
    "outkeep/inline": Model(_inline, schema=_URI),
    "outkeep/copy": Model(lambda _: Given("image"), schema=_URI),
    "outkeep/community": Model(_picture, schema=_URI, official=False),
    "outkeep/nothing": Model(_nothing),
    "outkeep/fails": Model(_nothing, status="failed", error="CUDA out of memory"),
    "outkeep/aborts": Model(_nothing, status="aborted"),
    "outkeep/slow": Model(_picture, seconds=600, schema=_URI),
    "outkeep/train": Model(_picture, schema=_URI),
}
"""Behaviour by model. Every model reads `seconds`; those with several outputs read `num_outputs`."""

_CREATED_AT = "2024-01-01T00:00:00.000000Z"
_COG_VERSION = "0.14.0"


def describe_model(name: str, base_url: str) -> dict[str, Any]:
    """The JSON object of model `owner/name`; every name exists."""
    owner, _, own = name.partition("/")
    return {
        "url": f"{base_url}/{name}",
        "owner": owner,
        "name": own,
        "description": "A simulated model",
        "visibility": "public",
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": 0,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": describe_version(name, version_id(name)),
    }


def describe_version(name: str, version: str) -> dict[str, Any]:
    """The JSON object of a version; its schema tells the client whether the output is an iterator."""
    schemas = {
        "Input": {"type": "object", "title": "Input", "properties": {}},
        "Output": {"title": "Output", **model_named(name).schema},
    }
    return {
        "id": version,
        "created_at": _CREATED_AT,
        "cog_version": _COG_VERSION,
        "openapi_schema": {"openapi": "3.0.2", "components": {"schemas": schemas}},
    }


def describe_deployment(name: str) -> dict[str, Any]:
    """The JSON object of deployment `owner/name`, which runs the model of that name."""
    owner, _, own = name.partition("/")
    return {
        "owner": owner,
        "name": own,
        "current_release": {
            "number": 1,
            "model": name,
            "version": version_id(name),
            "created_at": _CREATED_AT,
            "created_by": {"type": "user", "username": "simulator", "name": "Simulator", "github_url": None},
            "configuration": {"hardware": "cpu", "min_instances": 0, "max_instances": 1},
        },
    }
