"""The manifest: what was kept of one prediction, as `prediction.json` beside its files.

It alone is enough to rebuild everything else, so it holds the object exactly as it was received.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self

from app.core.context import Query
from app.core.errors import Permanent, Removed, Unusable
from app.core.names import Kind
from app.core.outputs import OutputFile, with_stored_names
from app.core.policy import MENDED_BY_SETTING
from app.core.prediction import Prediction, from_object

FORMAT = 1
_REMOVED_AT = "removed_at"
Source = Literal["webhook", "cog", "run", "reconcile"]


@dataclass(frozen=True)
class KeptFile:
    """One file of a prediction: kept, or lost with a reason.

    Kept: `name`, `media_type`, `size` (bytes) and `sha256` (hex) are set. Lost: only `error`, a code.
    `encoding` is the `Content-Encoding` that the bytes still have, as they came.
    `source` is a URL, `data:<type>;sha256=<hex>` for a `data:` URI, or None for text joined by us.
    """

    pointer: str
    source: str | None
    name: str | None = None
    media_type: str | None = None
    size: int | None = None
    sha256: str | None = None
    error: str | None = None
    encoding: str | None = None

    def to_object(self) -> dict[str, Any]:
        """Its keys as they are written; `encoding` only if there is one."""
        return {key: value for key, value in asdict(self).items() if key != "encoding" or value is not None}

    @property
    def is_input(self) -> bool:
        """Whether it went into the model, rather than came out of it."""
        return self.pointer.split("/")[1:2] == ["input"]


@dataclass(frozen=True)
class Link:
    """A text of the output that is a URL elsewhere: nothing of ours, neither fetched nor lost."""

    pointer: str
    url: str


@dataclass(frozen=True)
class Receipt:
    """How an event reached us."""

    received_at: datetime
    webhook_id: str | None
    source: Source = "webhook"
    query: Query = field(default_factory=dict)
    """Parameters of the webhook URL: not covered by the signature."""
    context: Any = None
    """What our own signature on the webhook URL vouches for."""
    parent: str | None = None
    quiet: bool = False
    """Whether no handler is told, for good; a record carries it, no manifest does."""


@dataclass(frozen=True)
class Manifest:
    """A manifest as it stands in storage."""

    prediction: Prediction
    files: tuple[KeptFile, ...]
    output: Any
    receipt: Receipt
    stored_at: datetime
    links: tuple[Link, ...] = ()

    @property
    def lost(self) -> tuple[KeptFile, ...]:
        """The outputs that could not be kept; without any the manifest is final."""
        return tuple(file for file in self.files if file.error is not None and not file.is_input)

    @property
    def refused(self) -> Mapping[int, KeptFile]:
        """The outputs, by their number, that are lost until the operator changes a setting."""
        return {
            number: file
            for number, file in enumerate(self.files)
            if file.error in MENDED_BY_SETTING and not file.is_input
        }

    @property
    def lost_inputs(self) -> tuple[KeptFile, ...]:
        """The inputs that could not be kept, or may not be fetched; nothing waits for them."""
        return tuple(file for file in self.files if file.error is not None and file.is_input)

    @property
    def kept(self) -> tuple[KeptFile, ...]:
        """The files that lie in storage."""
        return tuple(file for file in self.files if file.error is None)

    def replaces(self, other: Self | None) -> bool:
        """Whether this manifest may stand in the place of `other`: only fewer losses may, outputs first.

        What Replicate vouches for stands in the place of what came with Cog's token, and never the reverse.
        """
        if other is None or self.is_overruled_by(other.receipt) or other.is_overruled_by(self.receipt):
            return other is None or other.is_overruled_by(self.receipt)
        return self.losses < other.losses

    def is_overruled_by(self, receipt: Receipt) -> bool:
        """Whether it is about an event of Cog, and Replicate itself has told of that prediction."""
        return self.receipt.source == "cog" and receipt.source != "cog"

    @property
    def losses(self) -> tuple[int, int]:
        """How many outputs and inputs are missing."""
        return len(self.lost), len(self.lost_inputs)

    def to_json(self) -> bytes:
        """UTF-8 JSON with the keys of format 1, each on a line of its own."""
        receipt = self.receipt
        document = {
            "outkeep": FORMAT,
            "kind": self.prediction.kind,
            "id": self.prediction.id,
            "prediction": self.prediction.raw,
            "files": [file.to_object() for file in self.files],
            "links": [asdict(link) for link in self.links],
            "output": self.output,
            "received_at": format_time(receipt.received_at),
            "stored_at": format_time(self.stored_at),
            "webhook_id": receipt.webhook_id,
            "source": receipt.source,
            "parent": receipt.parent,
            "query": dict(receipt.query),
            "context": receipt.context,
        }
        # With `indent` Python encodes in Python, and gives each number of an embedding a line of its own.
        members = (f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in document.items())
        return ("{\n" + ",\n".join(members) + "\n}").encode()


def build(
    prediction: Prediction,
    kept: Sequence[tuple[OutputFile, KeptFile]],
    text: KeptFile | None,
    receipt: Receipt,
    stored_at: datetime,
    *,
    inputs: Sequence[KeptFile] = (),
    links: Sequence[OutputFile] = (),
) -> Manifest:
    """Put together the manifest of a prediction whose files have been dealt with, in order of appearance.

    Inputs come last: who asks for the first file wants an output.
    """
    outputs = [file for _, file in kept]
    return Manifest(
        prediction=prediction,
        files=(*outputs, *([text] if text else []), *inputs),
        output=_stored_output(prediction, outputs),
        receipt=receipt,
        stored_at=_to_the_millisecond(stored_at),
        links=tuple(Link(link.pointer, link.source) for link in links),
    )


def mended(manifest: Manifest, kept: Mapping[int, KeptFile], stored_at: datetime) -> Manifest:
    """The manifest once outputs that were refused have been dealt with, by their number."""
    files = tuple(kept.get(number, file) for number, file in enumerate(manifest.files))
    return replace(
        manifest,
        files=files,
        output=_stored_output(manifest.prediction, files),
        stored_at=_to_the_millisecond(stored_at),
    )


def output_with_links(manifest: Manifest, link: Callable[[str], str]) -> Any:
    """The output with links to stored files in the place of what Replicate deletes; `link` takes a name."""
    return _stored_output(manifest.prediction, manifest.files, link)


def _stored_output(
    prediction: Prediction, files: Iterable[KeptFile], spell: Callable[[str], str] = lambda name: name
) -> Any:
    names: dict[str, list[str]] = {}
    for file in files:
        if file.name is not None and file.source is not None and not file.is_input:
            names.setdefault(file.source, []).append(spell(file.name))
    return with_stored_names(prediction.output, names)


def _to_the_millisecond(time: datetime) -> datetime:
    """As it is written: what reads a manifest back must not find another time."""
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def read(data: bytes) -> Manifest | None:
    """The manifest in `data`; None when it is torn, as after a power cut in the middle of writing it.

    Raises:
        Removed: `farewell` stands in its place.
        Permanent: it is whole and yet not a manifest of format 1. It may not be taken for absent, since then
            it would be overwritten, and its files fetched again long after they are gone.
    """
    try:
        document = json.loads(data)
    except ValueError:
        return None
    except RecursionError:
        raise _unreadable("it nests too deep") from None
    if not isinstance(document, dict) or document.get("outkeep") != FORMAT:
        raise _unreadable("another version of Outkeep wrote it, or none")
    if _REMOVED_AT in document:
        raise Removed("its removal has begun and not ended; `outkeep rm` with its id ends it")
    try:
        return _from_document(document)
    except (ValueError, KeyError, TypeError, Unusable) as error:
        raise _unreadable(f"a key of it is missing or odd ({type(error).__name__})") from None


def require_place(manifest: Manifest, kind: Kind, prediction_id: str) -> None:
    """Raise `Permanent` unless `manifest` is that of a prediction, in whose folder it stands."""
    found = manifest.prediction
    if (found.kind, found.id) != (kind, prediction_id):
        odd = "kind" if found.id == prediction_id else "id"
        raise _unreadable(f"its {odd} is not that of its folder")


def farewell(now: datetime) -> bytes:
    """What takes the place of a manifest while files are being removed, so that nobody takes them for whole.

    It is removed last, and a crash before that leaves nothing of the prediction in it.
    """
    return json.dumps({"outkeep": FORMAT, _REMOVED_AT: format_time(now)}).encode()


def _from_document(document: Mapping[str, Any]) -> Manifest:
    return Manifest(
        prediction=from_object(document["prediction"], Kind(document["kind"])),
        files=tuple(KeptFile(**file) for file in document["files"]),
        output=document["output"],
        receipt=Receipt(
            received_at=datetime.fromisoformat(document["received_at"]),
            webhook_id=document["webhook_id"],
            source=document["source"],
            query=document["query"],
            context=document["context"],
            parent=document["parent"],
        ),
        stored_at=datetime.fromisoformat(document["stored_at"]),
        links=tuple(Link(**link) for link in document.get("links", ())),  # older ones know no links
    )


def _unreadable(reason: str) -> Permanent:
    return Permanent("manifest_unreadable", f"the manifest in storage cannot be used: {reason}")


def format_time(time: datetime) -> str:
    """RFC 3339 in UTC, with milliseconds and `Z`."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
