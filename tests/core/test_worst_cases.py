"""One event takes work and memory in proportion to its size, whatever its shape: generated worst cases.

The bound, for each MiB: `SECONDS` of CPU and `MEMORY` MiB, through all that receiver and workers do with it,
a manifest of `MANIFEST` times its size, and an event for handlers of 256 KiB. The first two hold for each
function, too, that takes a text, a header or bytes of somebody else.
"""

import gc
import inspect
import json
import pkgutil
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import app.core
from app.cli import kept as progress
from app.core import (
    addresses,
    answers,
    content,
    context,
    data_uri,
    heads,
    hosts,
    inputs,
    links,
    media,
    names,
    outcomes,
    outputs,
    reconciling,
    request,
    signature,
    templates,
)
from app.core import answers as retry_after
from app.core import event as events
from app.core import hosts as allowed_hosts
from app.core import (
    manifest as manifests,
)
from app.core import (
    prediction as predictions,
)
from app.core import presentation as ranges
from app.core import progress as running
from app.core import reconciling as creations
from app.core import signature as keys
from app.core.errors import OutkeepError
from app.core.handlers import Handler, Webhook, interested
from app.core.manifest import KeptFile, Receipt
from app.core.names import Kind
from app.core.prediction import Prediction
from app.replicate import client as trimming

RULES = hosts.HostRules.parse("replicate.delivery *.replicate.delivery storage.googleapis.com")
TRUSTING = hosts.HostRules.parse("* http://127.0.0.1:9000")
FILES = 2000
"""As many as one run names."""

SECONDS, FIXED = 15.0, 6.0
"""Ten times what most take on an idle machine, and five times what the slowest does."""

MEMORY, FIXED_MEMORY = 200, 32 << 20
"""Bytes for each byte: lists in lists take most, of which there are several copies; all else takes a tenth of
that. And what there is for any event. In all no more than some times what the values of a body may take."""

MANIFEST = 5
MIB = 1 << 20
FILE, LINK, REFUSED = "https://replicate.delivery/a", "https://a.b/", "https://a.b/c.png"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
CONTEXTS = context.context_keys([b"k" * 32])
LINKS = links.link_keys([b"k" * 32])
KEYS = keys.parse_verifying_keys("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
HANDLER = Handler("gallery", Webhook("https://a.b", (), "outkeep"), model="*a*b*/*c*d")
SEEKING = reconciling.Rules("known", True, "https://a.b", "https://c.d", CONTEXTS, NOW)  # noqa: FBT003
TEMPLATE = templates.parse(
    {"a": "{output}", "b": "{input.a}", "c": "x {input} y", "d": ["{files}", "{logs}"] * 50}
)


def repeated(text: str) -> Callable[[int], str]:
    return lambda size: text * (size // len(text.encode()))


def listed(*texts: str) -> Callable[[int], list[str]]:
    each = sum(len(text) + 4 for text in texts)
    return lambda size: [*texts] * (size // each)


def sentence(text: str) -> Callable[[int], str]:
    return lambda size: f"see {repeated(text)(size)} there"


def in_json(value: Callable[[int], Any], times: int) -> Callable[[int], str]:
    """JSON in a string, perhaps in another one, and so on."""

    def make(size: int) -> str:
        text = value(size // 2**times)
        for _ in range(times):
            text = json.dumps(text)
        return str(text)

    return make


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
    "JSON": in_json(listed(FILE, LINK), 1),
    "JSON in JSON": in_json(listed(FILE, LINK), 2),
    "JSON in JSON in JSON": in_json(listed(FILE, REFUSED), 3),
    "names with brackets": repeated(f"[a]({FILE} (1).png) "),
    "names with blanks": repeated(f"![](<{FILE} b.png>) "),
    "HTML": repeated(f'<img src="{FILE}.png?x=1&amp;y=2">'),
    "escapes": repeated("\\u0026"),
    "quotes": repeated('"'),
    "backslashes": repeated("\\"),
    "placeholders": repeated("{input.a}"),
    "braces": repeated("{"),
    "brackets": repeated("["),
    "semicolons": repeated(";"),
    "commas": repeated(","),
    "colons": repeated(":"),
    "dots": repeated("a."),
    "slashes": repeated("a/"),
    "escaped bytes": repeated("%c3"),
    "parameters": repeated("a=&"),
    "digits": repeated("7"),
    "letters": repeated("\u00fc"),
    "zeros": repeated("\0"),
    "lines": repeated("\r\n"),
    "headers": repeated("a: b\r\n"),
    "continued lines": repeated(" b\r\n"),
    "lengths": repeated("content-length: 1,1\r\n"),
    "file names": repeated('filename="a\\";'),
    "more file names": repeated("filename*='"),
    "comments": repeated("<!-- --> "),
    "assets": repeated('"asset":{'),
    "bars": repeated("100%|#| 1/2\r"),
    "signatures": repeated("v1,AAAA "),
    "floats": lambda size: [1.5] * (size // 5),
    "large numbers": lambda size: [10**15] * (size // 18),
    "empty objects": lambda size: [{}] * (size // 4),
    "empty lists": lambda size: [[]] * (size // 4),
    "members": lambda size: {str(number): None for number in range(size // 16)},
    "objects of files": lambda size: [{"a": REFUSED, "b": 1, "c": ["x", FILE]}] * (size // 90),
    "deep objects": lambda size: [nested(LINK, 80)] * (size // 190),
    "a file in pieces": lambda size: [f"{FILE}/", *["a"] * (size // 5)],
    "an inline file in pieces": lambda size: ["data:image/png;base64,", *["AAAA"] * (size // 8)],
    "inline files of escapes": lambda size: ["data:text/plain," + "%41" * 300] * (size // 930),
    "large inline files": lambda size: ["data:image/png;base64," + "A" * 1000] * (size // 1030),
    "keys and values that are files": lambda size: {f"{FILE}{one}": LINK for one in range(size // 60)},
}


@pytest.fixture(autouse=True, scope="module")
def _still() -> Iterator[None]:
    """What other tests have left is looked through once, not before each measurement."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@contextmanager
def within(what: str, size: int) -> Iterator[None]:
    """Bounds the work and the memory of a block that reads so many bytes."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    began, before = time.process_time(), resident("RSS")
    yield
    spent, grown = time.process_time() - began, resident("HWM") - before
    assert spent < (SECONDS * size + FIXED * min(size, MIB)) / MIB, f"{what} took {spent:.1f} s of CPU"
    assert grown < min(MEMORY * size, 4 * predictions.HEAVIEST) + FIXED_MEMORY, (
        f"{what} took {grown >> 20} MiB"
    )


def resident(what: str) -> int:
    """Bytes of memory that this process has (`RSS`) or had at most (`HWM`)."""
    (found,) = re.findall(rf"Vm{what}:\s+([0-9]+) kB", Path("/proc/self/status").read_text())
    return int(found) << 10


def read_event(body: bytes) -> None:
    """What a receiver and the workers do with an event, save for what takes files and networks."""
    predictions.is_progress(body)
    with suppress(OutkeepError):
        running.live(predictions.parse(body, Kind.PREDICTION))
    trim(b'{"results":[' + body + b"]}")
    with suppress(OutkeepError):
        read_prediction(predictions.parse(body, Kind.PREDICTION), body)


def read_prediction(prediction: Prediction, body: bytes) -> None:
    found = outputs.find(prediction.output, RULES, most=FILES)
    assert sum(len(file.pointer) for file in [*found.files, *found.links]) < 300 * 1024
    outputs.find(prediction.output, TRUSTING)
    kept = []
    for number, file in enumerate(found.files):
        source = data_uri.source_of(file.source) if file.is_inline else file.source
        kept.append((file, KeptFile(file.pointer, source, f"output-{number}.bin", "x/y", 1, "ab" * 32)))
    text = outputs.joined_text(prediction.output)
    assert text is None or len(text) <= len(body)
    wanted = [one for one, _ in zip(inputs.find_inputs(prediction.raw["input"]), range(1000), strict=False)]
    assert sum(len(one.place.pointer) + len(one.key) for one in wanted) < 300 * 1024
    receipt = Receipt(NOW, "msg", query={"a": "b"}, context={"outkeep": prediction.raw["input"]})
    manifest = manifests.build(prediction, kept, None, receipt, NOW, links=found.links)
    written = manifest.to_json()
    assert len(written) < (MANIFEST + 2) * len(body) + MIB
    again = manifests.read(written)
    assert again is not None
    manifests.require_place(again, prediction.kind, prediction.id)
    manifests.mended(again, dict(enumerate(again.files)), NOW)
    event = events.build(again, lambda name: f"https://x/{name}")
    events.event_type(again)
    assert len(events.encode(event)) <= events.MAX_BYTES
    assert len(events.encode(events.as_replicate_sends_it(again, lambda name: name))) < 2 * len(written)
    data = events.whole(again, lambda name: name)
    templates.files_used(TEMPLATE, FILES)
    templates.files_named(TEMPLATE, FILES)
    templates.looks_into(TEMPLATE, "input")
    creations.fingerprint(prediction.raw["input"])
    with suppress(OutkeepError):
        templates.render(TEMPLATE, data)
    with suppress(OutkeepError):
        templates.parse(prediction.output)
    context.lineage(receipt.context)
    context.parent(receipt.context)
    context.followed(receipt.context, context.Lineage(prediction.kind, "a", "b", 1))
    with suppress(OutkeepError):
        context.webhook_url("https://a.b", prediction.kind, {"a": prediction.raw["input"]}, CONTEXTS)
    request.with_urls(
        prediction.raw["input"], dict.fromkeys(request.local_files(prediction.raw["input"]), "")
    )
    interested([HANDLER], prediction)
    item = reconciling.in_brief(prediction)
    reconciling.judge(item, False, SEEKING, NOW)  # noqa: FBT003
    reconciling.by_urgency([item] * 100, NOW)
    reconciling.is_from_web(prediction)
    reconciling.is_foreign(prediction, SEEKING, has_record=False, whole=True)
    reconciling.is_quiet(prediction, SEEKING, web=False, has_record=False)
    creations.may_wait(prediction, NOW)


def trim(page: bytes) -> None:
    trimmed = trimming.Trimmed()
    with suppress(OutkeepError):
        for at in range(0, len(page), 1 << 16):
            trimmed.feed(page[at : at + (1 << 16)])
    assert len(trimmed.kept) <= len(page) + 100


def head(text: str) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + text.encode("utf-8", "replace") + b"\r\n\r\n"


def answer(text: str) -> answers.Answer:
    return answers.Answer("a.b", 302, [text], [text], [text], text, text)


TEXTS: dict[str, Callable[[str], object]] = {
    "a data: URI": data_uri.source_of,
    "an escaped one": lambda text: data_uri.source_of(f"data:,{text}"),
    "one in base64": lambda text: data_uri.source_of(f"data:;base64,{text}"),
    "a URL": lambda text: (outputs.has_file_name(text), RULES.lists(text), TRUSTING.lists(text)),
    "a URL to fetch": lambda text: (RULES.permits(text), TRUSTING.permits(f"https://{text}")),
    "a name in a certificate": lambda text: (
        hosts.is_certified("a.b", [text]) or hosts.is_certified(text, ["a"])
    ),
    "an upload": lambda text: inputs.upload_id(text, "https://a.b"),
    "a link": lambda text: links.linked_object(
        f"https://a.b/files/predictions/{text}", "https://a.b", LINKS, now=0
    ),
    "a signed path": lambda text: links.check_path(text, text, text, LINKS, now=0),
    "a name": lambda text: (media.extension(b"", url_path=text), media.is_never_a_page(text)),
    "a disposition": lambda text: media.declared(text, f"attachment; {text}", text),
    "a type": lambda text: (media.extension_for_media_type(text), answers.media_type(text)),
    "a range": lambda text: ranges.parse_range(f"bytes={text}", 1),
    "a wait": lambda text: (
        retry_after.retry_after(text, now=0) or retry_after.retry_after(f"Mon, {text}", now=0)
    ),
    "a time": predictions.parse_time,
    "logs": lambda text: (running.percentage(text), progress.grown(text[1:], text)),
    "a token": lambda text: (context.unseal(text, CONTEXTS), context.unseal(f"{text}.{text}", CONTEXTS)),
    "parameters": lambda text: context.split_query([("a", text), (text, "b")] * 20, CONTEXTS),
    "long parameters": lambda text: context.shortened({"a": text, text: "b", "c": [text] * 20}, 1 << 14),
    "codings": lambda text: answers.content_coding([text] * 20, b"abc"),
    "a redirection": lambda text: answers.redirection(answer(text), "https://a.b"),
    "a refusal": lambda text: answers.declared_length(answer(text), max_bytes=1, now=0),
    "a length": lambda text: answers.declared_length(answers.Answer("a.b", 200, [text]), max_bytes=1, now=0),
    "an error page": lambda text: answers.require_no_error_page(
        f"{text}.png", host="a.b", content_type="text/html", head=text.encode()[:4096]
    ),
    "a name of a host": lambda text: allowed_hosts.AllowedHosts.parse("a.b").allows([text]),
    "an address": lambda text: (addresses.sender(text), addresses.Proxies("10.0.0.0/8").stranger(text)),
    "a webhook": lambda text: reconciling.webhook_of(
        Prediction(Kind.PREDICTION, "a", "b", {"webhook": f"https://a.b/webhooks/replicate?{text}"}), SEEKING
    ),
    "a model": lambda text: HANDLER.wants(Prediction(Kind.PREDICTION, "a", "b", {"model": text})),
    "an input": lambda text: request.parse_input([f"a={text}"], {}),
    "inputs": lambda text: request.parse_input([f"a[]={part}" for part in text.split("=")], {}),
    "a context": lambda text: request.parse_context([f"a={text}"]),
    "a template": templates.parse,
    "a key of an input": names.input_key,
    "an encoding": media.packed,
}
"""What takes a text that others send, as a field, a URL or a header."""

BYTES: dict[str, Callable[[bytes], object]] = {
    "a body": lambda data: predictions.parse(data, Kind.PREDICTION),
    "progress": predictions.is_progress,
    "weights": predictions.is_heavy,
    "a manifest": manifests.read,
    "an upload": lambda data: inputs.description(data, "a"),
    "an outcome": outcomes.read,
    "a file": lambda data: (content.detect(data), content.also(data), media.extension(data)),
    "a page": trim,
    "a value in a page": lambda data: trim(b'{"results":[{"a":' + data),
    "a head": lambda data: (heads.is_informational(data), heads.for_file(data), heads.for_status(data)),
    "a beginning of a head": lambda data: heads.is_answered(b"HTTP/1.1 200" + data),
    "headers": lambda data: heads.for_file(head(data.decode())),
    "headers of a handler": lambda data: heads.for_status(head(data.decode())),
    "a signature": lambda data: signature.verify(
        [(b"webhook-id", b"a"), (b"webhook-timestamp", b"1"), (b"webhook-signature", data)], data, KEYS, now=1
    ),
    "headers of a webhook": lambda data: signature.verify([(data, data)] * 100, data, KEYS, now=1),
}
"""The same of bytes."""

AT_FULL_SIZE = frozenset(
    {
        *("a long key over files", "files", "tokens and files", "deep members", "a URL of brackets"),
        *("URLs in URLs", "URLs behind letters of two bytes", "inline files in quotes that nothing closes"),
        *("JSON in JSON in JSON", "quotes", "parameters", "members"),
    }
)
"""One shape of each kind, of 1 MiB; an eighth shows of the others what they take."""

CASES = [
    *((shape, MIB if shape in AT_FULL_SIZE else MIB // 8) for shape in SHAPES),
    *(
        pytest.param(shape, 32 * MIB, marks=pytest.mark.soak)
        for shape in ("a long key over files", "one inline file", "blanks")
    ),
]


@pytest.mark.parametrize(("shape", "size"), CASES)
def test_an_event_of_any_shape_takes_work_and_memory_in_proportion_to_its_size(shape: str, size: int) -> None:
    """The same value stands in its output, its input, its error and its metrics."""
    make, part = SHAPES[shape], size // 8
    given = {"output": make(5 * part), "input": {"a": make(part)}, "error": make(part), "metrics": make(part)}
    body = json.dumps(
        {"id": "a", "status": "succeeded", "logs": shape * min(part // 13, 10_000), **given}
    ).encode()
    del given
    with within("an event", len(body)):
        read_event(body)


@pytest.mark.parametrize(("shape", "size"), CASES[: len(SHAPES)])
def test_a_text_and_bytes_of_any_shape_do_so_too(shape: str, size: int) -> None:
    value = SHAPES[shape](size)
    if isinstance(value, str):
        for what, read in TEXTS.items():
            with within(what, size), suppress(OutkeepError):
                read(value)
    data = (value if isinstance(value, str) else json.dumps(value)).encode()
    for what, take in BYTES.items():
        with within(what, size), suppress(OutkeepError):
            take(data)


OURS = {
    *(
        "addresses",
        "bucket_faults",
        "errors",
        "findings",
        "fleet",
        "lifecycle",
        "names",
        "notation",
        "policy",
    ),
    *("presentation", "shares", "vocabulary"),
}
"""Modules that take what the operator, the system or we have written, or what is bounded before."""

OUR_OWN = {
    *(
        "answers.require_complete",
        "answers.too_large",
        "context.context_keys",
        "handlers.calls",
        "handlers.make",
    ),
    *("handlers.job_queues", "handlers.mistakes", "handlers.needs_token", "handlers.parse", "hosts.is_host"),
    *("links.derive", "links.file_path", "links.fingerprint", "links.link_keys", "links.parse_secret_keys"),
    *("links.sign_path", "links.signed_url", "manifest.farewell", "media.is_inline_safe", "media.media_type"),
    *(
        "outcomes.document",
        "reconciling.asked_again_in",
        "reconciling.due_at",
        "reconciling.mark_of",
    ),
    *("reconciling.since", "request.parse_model", "request.parse_runnable", "signature.generate_secret"),
    *("signature.parse_signing_keys", "signature.parse_verifying_keys", "signature.sign"),
    "signature.signed_headers",
}
"""Functions that do so."""


def test_each_function_of_core_that_takes_what_others_send_is_among_them() -> None:
    called: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            called.add(frame.f_code)

    sys.setprofile(note)
    try:
        value = SHAPES["objects of files"](500)
        given = {"output": [*value, "data:,a"], "input": {"a": value}}
        read_event(json.dumps({"id": "a", "status": "succeeded", **given}).encode())
        for text in (FILE, "data:,a", "a"):
            for read in TEXTS.values():
                with suppress(OutkeepError):
                    read(text)
            for take in BYTES.values():
                with suppress(OutkeepError):
                    take(text.encode())
    finally:
        sys.setprofile(None)
    left = {
        f"{module}.{name}"
        for module in (one.name for one in pkgutil.iter_modules(app.core.__path__) if one.name not in OURS)
        for name, function in inspect.getmembers(import_module(f"app.core.{module}"), inspect.isfunction)
        if function.__module__ == f"app.core.{module}" and not name.startswith("_")
        if function.__code__ not in called
    }
    assert left - OUR_OWN == set()
    assert OUR_OWN - left == set()
