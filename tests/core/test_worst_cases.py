"""One event takes work and memory in proportion to its size, whatever its shape: generated worst cases.

The bound: `SECONDS` of CPU for each MiB of the event, through everything that reads its output or input, a
manifest of `MANIFEST` times its size, and an event for handlers of 256 KiB.
"""

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from app.core import event as events
from app.core import manifest as manifests
from app.core.data_uri import source_of
from app.core.hosts import HostRules
from app.core.inputs import find_inputs
from app.core.manifest import KeptFile, Receipt
from app.core.names import Kind
from app.core.outline import outline
from app.core.outputs import find, joined_text
from app.core.prediction import Prediction, is_progress, parse
from app.core.progress import percentage

RULES = HostRules.parse("replicate.delivery *.replicate.delivery storage.googleapis.com")
FILES = 2000
"""As many as one run names."""

SECONDS, FIXED = 6.0, 6.0
"""Ten times what it takes on an idle machine, and what does not depend on the size."""

MANIFEST = 5
MIB = 1 << 20
FILE, LINK, REFUSED = "https://replicate.delivery/a", "https://a.b/", "https://a.b/c.png"
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def repeated(text: str) -> Callable[[int], str]:
    return lambda size: text * (size // len(text.encode()))


def listed(*texts: str) -> Callable[[int], list[str]]:
    each = sum(len(text) + 4 for text in texts)
    return lambda size: [*texts] * (size // each)


def sentence(text: str) -> Callable[[int], str]:
    return lambda size: f"see {repeated(text)(size)} there"


def nested(value: Any, levels: int = 90) -> Any:
    for _ in range(levels):
        value = [value]
    return value


SHAPES: dict[str, Callable[[int], Any]] = {
    "a long key over files": lambda size: {"k" * (size * 3 // 4): [FILE] * (size // 4 // 34)},
    "a long key over numbers": lambda size: {"k" * (size // 2): [1] * (size // 6)},
    "long keys over each other": lambda size: {"k" * (size // 3): {"l" * (size // 3): [FILE] * FILES}},
    "a key that is escaped": lambda size: {"/" * (size // 2): [FILE] * (size // 80)},
    "keys that are files": lambda size: {f"{FILE}{number}": [] for number in range(size // 45)},
    "files": listed(FILE),
    "links": listed(LINK),
    "refused": listed(REFUSED),
    "inline files": listed("data:;base64,YQ=="),
    "one inline file": lambda size: "data:image/png;base64," + "A" * size,
    "tokens and files": listed("word ", FILE, "."),
    "files in pieces": listed("htt", "ps://replicate.delivery/a "),
    "deep links": lambda size: nested(listed(LINK)(size)),
    "deep members": lambda size: nested([{"a": LINK}] * (size // 30)),
    "a long URL": lambda size: FILE + "a" * size,
    "a URL of escapes": lambda size: FILE + "%41" * (size // 3),
    "a URL of brackets": lambda size: FILE + ")(" * (size // 2) + " x",
    "a URL of blanks": lambda size: FILE + " " * size + "b.png",
    "a URL of backslashes": lambda size: FILE + "\\" * (size // 2) + " x",
    "URLs in quotes": repeated("'https://a b c d' "),
    "URLs in brackets": repeated("(https://a b) "),
    "URLs with commas": repeated(f"{FILE},"),
    "URLs in URLs": repeated("=https://a"),
    "URLs behind brackets": sentence("https://a)="),
    "URLs behind square brackets": sentence(f"{FILE}]/"),
    "escaped URLs behind brackets": sentence("https:\\/\\/a\\/)="),
    "URLs behind letters": sentence("https://a/b.png\u00e9/"),
    "URLs behind letters of two bytes": sentence("https://a/b.png\u4e00="),
    "URLs in letters": lambda size: list("https://a)=" * (size // 44)),
    "beginnings": repeated("https:"),
    "beginnings of inline files": repeated("data:a/b;"),
    "inline files in quotes that nothing closes": repeated("«data:a/b,x"),
    "inline files over lines": repeated('"data:;base64,A\\n'),
    "escaped letters": repeated("https://a\\\\ud83d"),
    "names before words": listed("https://a/b.png\u4e00"),
    "blanks": repeated(" "),
    "empty tokens": lambda size: [""] * (size // 4),
    "markdown": repeated(f"![a]({FILE}.png) "),
}


@contextmanager
def within(seconds: float) -> Iterator[None]:
    gc.collect()
    began = time.process_time()
    yield
    assert time.process_time() - began < seconds


def read_everything(prediction: Prediction, body: bytes) -> None:
    """What a worker does with an event, save for what takes files and networks."""
    found = find(prediction.output, RULES, most=FILES)
    assert sum(len(file.pointer) for file in [*found.files, *found.links]) < 300 * 1024
    kept = []
    for number, file in enumerate(found.files):
        source = source_of(file.source) if file.is_inline else file.source
        kept.append((file, KeptFile(file.pointer, source, f"output-{number}.bin", "x/y", 1, "ab" * 32)))
    text = joined_text(prediction.output)
    assert text is None or len(text) <= len(body)
    manifest = manifests.build(prediction, kept, None, Receipt(NOW, "msg"), NOW, links=found.links)
    written = manifest.to_json()
    assert len(written) < MANIFEST * len(body) + MIB
    again = manifests.read(written)
    assert again is not None
    assert len(events.encode(events.build(again, lambda name: f"https://x/{name}"))) <= events.MAX_BYTES
    short = outline(prediction.raw, limit=MIB)
    assert short is None or len(short) <= MIB


CASES = [*((shape, 1) for shape in SHAPES), ("a long key over files", 32)]


@pytest.mark.parametrize(("shape", "mebibytes"), CASES)
def test_an_output_of_any_shape_takes_work_in_proportion_to_its_size(shape: str, mebibytes: int) -> None:
    output = SHAPES[shape](mebibytes * MIB * 9 // 10)
    body = json.dumps({"id": "a", "status": "succeeded", "output": output}).encode()
    del output
    with within(SECONDS * mebibytes + FIXED):
        read_everything(parse(body, Kind.PREDICTION), body)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_input_and_logs_of_any_shape_do_so_too(shape: str) -> None:
    value = SHAPES[shape](MIB)
    with within(SECONDS + FIXED):
        found = [one for one, _ in zip(find_inputs(value), range(1000), strict=False)]
        assert sum(len(one.place.pointer) + len(one.key) for one in found) < 300 * 1024
        percentage(str(value))
        is_progress(json.dumps({"status": value}).encode())
