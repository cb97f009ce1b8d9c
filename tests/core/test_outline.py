"""What is left of an event so that its outputs can be fetched."""

import json
from typing import Any

import pytest

from app.accept.arrivals import outline
from app.core.hosts import HostRules
from app.core.names import Kind
from app.core.outputs import find
from app.core.prediction import from_object, parse

RULES = HostRules.parse("replicate.delivery")
URL = "https://replicate.delivery/x/out-0.png"
INLINE = "data:image/png;base64," + "A" * 2000
LIMIT = 1 << 20


def ended(output: Any, **keys: Any) -> dict[str, Any]:
    return {
        "id": "abc",
        "status": "succeeded",
        "completed_at": "2026-03-01T12:00:00Z",
        "output": output,
        **keys,
    }


def outlined(raw: dict[str, Any]) -> dict[str, Any]:
    body = outline(raw, limit=LIMIT)
    assert body is not None
    document: dict[str, Any] = json.loads(body)
    return document


def test_input_logs_and_what_is_not_known_are_left_out() -> None:
    raw = ended(URL, input={"image": INLINE}, logs="x" * 5000, model="a/b", version="hidden", novel=1)
    assert outlined(raw) == ended(URL, model="a/b", version="hidden")


@pytest.mark.parametrize(
    "output",
    [
        [INLINE, URL, "a caption", URL],
        {"mask": INLINE, "out": {"b": URL, "text": "t" * 5000}, URL: [URL, None, 3, True]},
        {INLINE: URL, "x": INLINE},
        ["See ", URL, f" and {INLINE}", " at ", URL],
        {"answer": f"![a]({URL}) ![b]({INLINE})", "file": URL, "page": "https://example.com/"},
        [["a ", URL], "https://files.example.com/a.png", URL, {"b": ["c", f"({URL})"]}],
    ],
)
def test_files_to_be_fetched_keep_their_number(output: Any) -> None:
    def to_be_fetched(output: Any) -> list[tuple[int, str]]:
        files = enumerate(find(output, RULES).files)
        return [(number, file.source) for number, file in files if not file.is_inline]

    assert to_be_fetched(outlined(ended(output))["output"]) == to_be_fetched(output)


def test_text_and_inline_files_do_not_stay() -> None:
    assert outlined(ended([INLINE, {"a": "a caption"}, URL]))["output"] == ["data:;base64,", {"a": ""}, URL]
    assert outlined(ended([INLINE, "a caption", URL]))["output"] == [".", f". data:;base64, {URL}"]
    assert outlined(ended(f"see {URL} and {INLINE}"))["output"] == f". {URL} data:;base64,"


@pytest.mark.parametrize("output", [None, "text", ["to", "kens"], INLINE, [INLINE], {"a": {"b": "text"}}, 3])
def test_where_nothing_is_to_be_fetched_there_is_none(output: Any) -> None:
    assert outline(ended(output), limit=LIMIT) is None


def test_what_is_still_too_large_has_none() -> None:
    body = outline(ended([URL] * 10), limit=LIMIT)
    assert body is not None
    assert outline(ended([URL] * 10), limit=len(body)) == body
    assert outline(ended([URL] * 10), limit=len(body) - 1) is None


def test_it_is_read_like_an_event(samples: list[dict[str, Any]]) -> None:
    seen = 0
    for sample in samples:
        whole = from_object(sample["object"], Kind.PREDICTION)
        body = outline(sample["object"], limit=LIMIT)
        if body is not None:
            seen += 1
            short = parse(body, Kind.PREDICTION)
            assert (short.id, short.status, short.completed_at) == (
                whole.id,
                whole.status,
                whole.completed_at,
            )
    assert seen > 10
