import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.outputs import OutputFile, escape, find_files, is_file, joined_text, with_stored_names

URL = "https://replicate.delivery/pbxt/AbC/out-0.png"
OTHER = "https://replicate.delivery/pbxt/DeF/out-0.png"
DATA = "data:image/png;base64,iVBORw0KGgo="

TEXTS = (
    st.sampled_from([URL, OTHER, DATA, "text", "", "~", "/", "~1", "a/b~c", "0", f"{URL} is nice"])
    | st.text()
)
OUTPUTS = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXTS, children, max_size=4),
    max_leaves=12,
)


def resolve(document: Any, pointer: str) -> tuple[Any, str | int | None]:
    """RFC 6901, section 4, written a second time: the value, and the last key or index on the way."""
    value, last = document, None
    assert pointer == "" or pointer.startswith("/")
    for token in pointer.split("/")[1:]:
        part = token.replace("~1", "/").replace("~0", "~")
        last = int(part) if isinstance(value, list) else part
        value = value[last]
    return value, last


def texts_of(value: Any) -> Iterator[str]:
    """Every string of a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from texts_of(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from texts_of(item)


def pointers(output: Any) -> list[tuple[str, str]]:
    return [(file.pointer, file.source) for file in find_files(output)]


def test_the_files_of_every_sample_are_found_and_their_pointers_lead_there(
    samples: list[dict[str, Any]],
) -> None:
    found = 0
    for sample in samples:
        document = sample["object"]
        files = list(find_files(document.get("output")))
        for file in files:
            value, last = resolve(document, file.pointer)
            assert file.source in (value, last)
        quoted = json.dumps(document.get("output")).count('"https://replicate.delivery/')
        assert sum("https://replicate.delivery/" in file.source for file in files) == quoted
        found += len(files)
    assert found > 380


def test_one_sample_has_urls_in_its_keys_and_one_has_249_files(samples: list[dict[str, Any]]) -> None:
    outputs = [sample["object"].get("output") for sample in samples]
    files = [list(find_files(output)) for output in outputs]
    assert max(map(len, files)) == 249
    in_keys = [file for group in files for file in group if file.pointer.endswith(escape(file.source))]
    assert len(in_keys) >= 4


SHAPES: list[tuple[Any, list[tuple[str, str]]]] = [
    (None, []),
    (True, []),
    (0.5, []),
    ("", []),
    ([], []),
    ({}, []),
    (URL, [("/output", URL)]),
    ([URL, OTHER], [("/output/0", URL), ("/output/1", OTHER)]),
    ([URL, URL], [("/output/0", URL), ("/output/1", URL)]),
    ([{"file": URL}, {"file": OTHER}], [("/output/0/file", URL), ("/output/1/file", OTHER)]),
    ({"b": OTHER, "a": URL}, [("/output/b", OTHER), ("/output/a", URL)]),
    ([[URL], [[OTHER]]], [("/output/0/0", URL), ("/output/1/0/0", OTHER)]),
    ({"a": {"b": {"c": [None, {"d": URL}]}}}, [("/output/a/b/c/1/d", URL)]),
    (["words", URL, 3, None, {"x": 1}], [("/output/1", URL)]),
    ({"a/b": URL, "~": OTHER}, [("/output/a~1b", URL), ("/output/~0", OTHER)]),
    ({"~1": URL, "/0~": OTHER}, [("/output/~01", URL), ("/output/~10~0", OTHER)]),
    ({"": URL}, [("/output/", URL)]),
    ({URL: "clean"}, [(f"/output/{escape(URL)}", URL)]),
    (
        {URL: {OTHER: {"BLEU": 1}}},
        [(f"/output/{escape(URL)}", URL), (f"/output/{escape(URL)}/{escape(OTHER)}", OTHER)],
    ),
    ({URL: OTHER}, [(f"/output/{escape(URL)}", URL), (f"/output/{escape(URL)}", OTHER)]),
    ({"version": "me/model:ab", "weights": URL}, [("/output/weights", URL)]),
    ([DATA, URL], [("/output/0", DATA), ("/output/1", URL)]),
]  # fmt: skip


@pytest.mark.parametrize(("output", "expected"), SHAPES, ids=range(len(SHAPES)))
def test_files_are_found_in_any_shape_in_order_of_appearance(
    output: Any, expected: list[tuple[str, str]]
) -> None:
    assert pointers(output) == expected


@pytest.mark.parametrize(
    "text",
    [
        URL,
        "http://127.0.0.1:9000/a.png",
        "HTTPS://replicate.delivery/A.PNG",
        "https://replicate.delivery/a/%28b%29%2F%7E.png",
        "https://replicate.delivery/a/b?x=y#z",
        "https://replicate.delivery/Bild-ü-图.png",
        "https://[::1]/x",
        "https://user@replicate.delivery/x",
        "https://replicate.delivery/" + "a" * 5000,
        DATA,
        "DATA:Image/PNG;BASE64,iVBO",
        "data:image/jpg;base64,",
        "data:text/plain,two words",
        "data:text/plain;charset=utf-8,é",
        "data:text/plain; charset=utf-8;base64,YQ==",
        "data:image/svg+xml;utf8,<svg xmlns='http://www.w3.org/2000/svg'/>",
        "data:image/png;name=a%20b.png;base64,iVBO",
        "data:application/vnd.ms-excel;base64,AAAA",
        "data:model/gltf-binary;base64,AAAA\nAAAA",
        "data:;base64,YQ==",
        "data:;charset=utf-8;base64,YQ==",
    ],
)
def test_a_whole_url_and_a_data_uri_are_files(text: str) -> None:
    assert is_file(text)
    assert OutputFile("/output", text).is_inline == text.lower().startswith("data:")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://",
        f"{URL} is what you asked for",
        f"{URL}\n",
        f"\n{URL}",
        f" {URL}",
        f"{URL}\u2028",
        f"{URL}\u00a0",
        f"[an image]({URL})",
        f"see {URL}",
        f"<{URL}>",
        "ftp://example.com/a.png",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "//replicate.delivery/a.png",
        "/tmp/out.png",
        "C:\\out.png",
        "out.png",
        "https:replicate.delivery/a.png",
        "data:",
        "data:,",
        "data: the numbers, in full",
        "data:nothing, really",
        "data:image/png;base64",
        "data:image/png\n,x",
        "data:image/png;a\n=b,x",
        "metadata:image/png;base64,AAAA",
        "iVBORw0KGgo=",
    ],
)
def test_text_that_only_looks_like_a_file_is_text(text: str) -> None:
    assert not is_file(text)
    assert pointers([text]) == []


def test_a_long_text_that_begins_like_a_data_uri_is_told_quickly() -> None:
    for text in ("data:" + "a" * 200_000, "data:a/b" + ";a" * 100_000, "data:" + "a/" * 100_000):
        assert not is_file(text)


@pytest.mark.parametrize(
    "text", ["data:a/b" + ";" * 200_000, "data:" + ";" * 200_000, "data:" + ";base64" * 30_000]
)
def test_no_text_takes_many_times_its_size(text: str) -> None:
    tracemalloc.start()
    assert not is_file(text)
    assert is_file(f"{text};base64,")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


@settings(deadline=None)
@given(OUTPUTS)
def test_every_pointer_resolves_and_nothing_is_missed(output: Any) -> None:
    files = list(find_files(output))
    assert [file.source for file in files] == [text for text in texts_of(output) if is_file(text)]
    for file in files:
        value, last = resolve({"output": output}, file.pointer)
        assert file.source in (value, last)


def test_the_walk_can_begin_elsewhere() -> None:
    assert list(find_files({"image": URL}, "/input")) == [OutputFile("/input/image", URL)]


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("words", "words"),
        (["", "To ", "be", "", ".\n"], "To be.\n"),
        (["\n\n", "Here is"], "\n\nHere is"),
        ([f"{URL} is nice"], f"{URL} is nice"),
        ([f"{URL}\n", "end"], f"{URL}\nend"),
        (" ", " "),
        ("", None),
        ([], None),
        ([""], None),
        (["", ""], None),
        (None, None),
        (5, None),
        (True, None),
        ({"text": "words"}, None),
        ({}, None),
        (["words", 1], None),
        (["words", None], None),
        (["words", ["more"]], None),
        (URL, None),
        ([URL], None),
        (["words", URL], None),
        (DATA, None),
    ],
)
def test_text_and_tokens_are_joined_and_nothing_else_is(output: Any, text: str | None) -> None:
    assert joined_text(output) == text


@settings(deadline=None)
@given(OUTPUTS)
def test_an_output_is_text_or_has_files_but_never_both(output: Any) -> None:
    assert joined_text(output) is None or not list(find_files(output))


def test_stored_names_take_the_place_of_sources_and_nothing_else_changes() -> None:
    output = {"images": [URL, OTHER, URL], URL: {"score": 1, "text": f"from {URL}"}, "a/~": DATA, "n": None}
    names = {file: f"output-{number}.png" for number, file in enumerate(find_files(output))}
    copy = with_stored_names(output, names)
    assert copy == {
        "images": ["output-0.png", "output-1.png", "output-2.png"],
        "output-3.png": {"score": 1, "text": f"from {URL}"},
        "a/~": "output-4.png",
        "n": None,
    }
    assert list(copy) == ["images", "output-3.png", "a/~", "n"]
    assert output["images"] == [URL, OTHER, URL]


def test_a_url_key_and_the_url_it_leads_to_get_different_names() -> None:
    names = dict(zip(find_files({URL: OTHER}), ["output-0.png", "output-1.png"], strict=True))
    assert with_stored_names({URL: OTHER}, names) == {"output-0.png": "output-1.png"}


def test_a_source_that_was_not_stored_stays() -> None:
    assert with_stored_names([URL, OTHER], {OutputFile("/output/1", OTHER): "output-1.png"}) == [
        URL,
        "output-1.png",
    ]


def test_a_key_is_not_renamed_onto_another() -> None:
    output = {"output-0.png": "mine", URL: "theirs"}
    names = dict.fromkeys(find_files(output), "output-0.png")
    assert with_stored_names(output, names) == output


@settings(deadline=None)
@given(OUTPUTS)
def test_without_names_the_output_stays_as_it_is(output: Any) -> None:
    assert with_stored_names(output, {}) == output


@settings(deadline=None)
@given(OUTPUTS)
def test_with_names_no_source_is_left_and_nothing_is_lost(output: Any) -> None:
    names = {file: f"stored-{number}" for number, file in enumerate(find_files(output))}
    copy = with_stored_names(output, names)
    assert not list(find_files(copy))
    assert len(list(texts_of(copy))) == len(list(texts_of(output)))


@settings(deadline=None)
@given(st.text(), st.text())
def test_escaped_parts_stay_apart(one: str, other: str) -> None:
    assert "/" not in escape(one)
    assert resolve({one: 1}, f"/{escape(one)}") == (1, one)
    assert (escape(one) == escape(other)) == (one == other)
