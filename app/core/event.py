"""What a handler is told: one event per prediction, made afresh for every attempt."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from app.core.manifest import KeptFile, Manifest, format_time, output_with_links
from app.core.names import MANIFEST_NAME

MAX_BYTES = 256 * 1024
MAX_LOGS = 64 * 1024
_NEVER_CUT = frozenset({"id", "kind", "status", "truncated"})
_BRIEF = {
    "files": ("name", "url", "media_type", "size"),
    "lost": ("pointer", "error"),
    "links": ("pointer", "url"),
}
"""What the entries of a long list keep: all that is needed to fetch a file. The rest is in the manifest."""

Link = Callable[[str], str]
"""From the name of a stored file of this prediction to a URL that is good for at least seven days."""


def event_type(manifest: Manifest) -> str:
    """`prediction.succeeded` and so on; a status that Replicate invents later is passed on as it is."""
    return f"{manifest.prediction.kind}.{manifest.prediction.status}"


def build(manifest: Manifest, link: Link) -> dict[str, Any]:
    """The event about a stored prediction, within 256 KiB.

    What is too large is replaced by a link to the manifest, largest first. `files`, `lost` and `links` stay
    lists: their entries are made brief, and only if that is not enough the last ones are left out.
    `data.truncated` lists the JSON pointers (into the event) of what was cut.
    """
    data = whole(manifest, link)
    event = {"type": event_type(manifest), "timestamp": format_time(manifest.stored_at), "data": data}
    logs = data["logs"].encode()
    if len(logs) > MAX_LOGS:
        data["logs"] = logs[-MAX_LOGS:].decode(errors="ignore")  # a character may be cut in two
        _name(data, "logs")
    _shrink(event, data, link(MANIFEST_NAME))
    return event


def as_replicate_sends_it(manifest: Manifest, link: Link) -> dict[str, Any]:
    """The prediction object as it came, with links to stored files in its output; nothing is cut.

    A program that was written for Replicate's own webhooks takes it for one of those.
    """
    raw = manifest.prediction.raw
    return {**raw, "output": output_with_links(manifest, link)} if "output" in raw else dict(raw)


def whole(manifest: Manifest, link: Link) -> dict[str, Any]:
    """The `data` of the event with nothing cut, however large."""
    prediction = manifest.prediction
    raw = prediction.raw
    return {
        "id": prediction.id,
        "kind": prediction.kind,
        "status": prediction.status,
        "model": prediction.model,
        "version": prediction.version,
        "input": raw.get("input"),
        "output": manifest.output,
        "files": [_file(file, link) for file in manifest.kept],
        "error": raw.get("error"),
        "metrics": raw.get("metrics"),
        "logs": prediction.logs,
        "created_at": raw.get("created_at"),
        "completed_at": raw.get("completed_at"),
        **({"deadline": raw["deadline"]} if "deadline" in raw else {}),
        "query": dict(manifest.receipt.query),
        "context": manifest.receipt.context,
        "links": [asdict(link) for link in manifest.links],
        "lost": [_lost(file) for file in (*manifest.lost, *manifest.lost_inputs)],
        "truncated": [],
    }


def encode(value: Any) -> bytes:
    """The bytes that are signed and sent."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _file(file: KeptFile, link: Link) -> dict[str, Any]:
    assert file.name is not None
    return {
        "name": file.name,
        "url": link(file.name),
        "pointer": file.pointer,
        "source": file.source,
        "media_type": file.media_type,
        "size": file.size,
        "sha256": file.sha256,
        **({"encoding": file.encoding} if file.encoding else {}),
    }


def _lost(file: KeptFile) -> dict[str, Any]:
    return {"pointer": file.pointer, "source": file.source, "error": file.error}


def _shrink(event: dict[str, Any], data: dict[str, Any], whole: str) -> None:
    """Cut one value after the other until the event is small enough; `whole` is the link to all of them."""
    sizes = {key: len(encode(value)) for key, value in data.items() if key not in _NEVER_CUT}
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        if _excess(event) <= 0:
            return
        if key in _BRIEF:
            data[key] = [{name: entry[name] for name in _BRIEF[key]} for entry in data[key]]
            _name(data, key)
        elif sizes[key] > len(encode(whole)):
            data[key] = whole
            _name(data, key)
    lists, excess = [data[key] for key in _BRIEF], _excess(event)
    while excess > 0 and (longest := max(lists, key=len)):
        excess -= len(encode(longest.pop())) + len(",")


def _excess(event: dict[str, Any]) -> int:
    """Bytes by which an event is too large."""
    return len(encode(event)) - MAX_BYTES


def _name(data: dict[str, Any], key: str) -> None:
    """Say that a value was cut."""
    pointer = f"/data/{key}"
    if pointer not in data["truncated"]:
        data["truncated"].append(pointer)
