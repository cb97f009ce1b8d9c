import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.data_uri import source_of
from app.core.hosts import HostRules
from app.core.outputs import (
    MAX_LINKS,
    MAX_POINTER,
    MAX_POINTERS,
    MAX_SPOTS,
    OutputFile,
    escape,
    find,
    find_spots,
    is_inline,
    joined_text,
    replaced,
    with_stored_names,
)

RULES = HostRules.parse("replicate.delivery *.replicate.delivery storage.googleapis.com")
URL = "https://replicate.delivery/pbxt/AbC/out-0.png"
OTHER = "https://replicate.delivery/pbxt/DeF/out-1.png"
PLAIN = "https://replicate.delivery/pbxt/GhI/out"
"""A name of no type."""
LINK = "https://en.wikipedia.org/wiki/Cat"
REFUSED = "https://files.example.com/cat.png"
DATA = "data:image/png;base64,iVBORw0KGgo="

TEXTS = (
    st.sampled_from(
        [
            URL,
            OTHER,
            PLAIN,
            LINK,
            REFUSED,
            DATA,
            "text",
            "",
            "~",
            "/",
            "~1",
            "a/b~c",
            "0",
            f"{URL} is nice",
            " ",
        ]
    )
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


def files(output: Any) -> list[tuple[str, str]]:
    return [(file.pointer, file.source) for file in find(output, RULES).files]


def links(output: Any) -> list[tuple[str, str]]:
    return [(link.pointer, link.source) for link in find(output, RULES).links]


def sources(output: Any) -> list[str]:
    return [file.source for file in find(output, RULES).files]


def test_the_files_of_every_sample_are_found_and_their_pointers_lead_there(
    samples: list[dict[str, Any]],
) -> None:
    found = 0
    for sample in samples:
        document = sample["object"]
        files = find(document.get("output"), RULES).files
        for file in files:
            value, last = resolve(document, file.pointer)
            assert file.source in (value, last)
        quoted = json.dumps(document.get("output")).count('"https://replicate.delivery/')
        assert sum("https://replicate.delivery/" in file.source for file in files) == quoted
        found += len(files)
    assert found > 380


def test_one_sample_has_urls_in_its_keys_and_one_has_249_files(samples: list[dict[str, Any]]) -> None:
    outputs = [sample["object"].get("output") for sample in samples]
    files = [find(output, RULES).files for output in outputs]
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
    ([[1, [2]], URL, {"a": []}, {"b": OTHER}], [("/output/1", URL), ("/output/3/b", OTHER)]),
]  # fmt: skip


@pytest.mark.parametrize(("output", "expected"), SHAPES, ids=range(len(SHAPES)))
def test_files_are_found_in_any_shape_in_order_of_appearance(
    output: Any, expected: list[tuple[str, str]]
) -> None:
    assert files(output) == expected


@pytest.mark.parametrize(
    "text",
    [
        URL,
        "HTTPS://replicate.delivery/A.PNG",
        "https://replicate.delivery/a/%28b%29%2F%7E.png",
        "https://replicate.delivery/a/b?x=y#z",
        "https://replicate.delivery/Bild-ü-图.png",
        "https://user@replicate.delivery/x",
        "http://replicate.delivery/x",
        "https://replicate.delivery:444/x",
        "https://x.replicate.delivery/" + "a" * 5000,
        "https://replicate.delivery/proxy?url=https://a.example/b.png",
        DATA,
        "DATA:Image/PNG;BASE64,iVBO",
        "data:image/jpg;base64,",
        "data:text/plain,two words",
        "data:text/plain;charset=utf-8,é",
        "data:text/plain; charset=utf-8;base64,YQ==",
        "data:image/svg+xml;utf8,<svg xmlns='http://www.w3.org/2000/svg'/>",
        "data:image/svg+xml,<svg width='100%'/>",
        "data:image/png;name=a%20b.png;base64,iVBO",
        "data:application/vnd.ms-excel;base64,AAAA",
        "data:model/gltf-binary;base64,AAAA\nAAAA",
        "data:;base64,YQ==",
        "data:;charset=utf-8;base64,YQ==",
        "data:png;base64,YQ==",
        "data:im age/png;base64,YQ==",
        "data:image/png; base64 ,YQ==",
        "data:image/png;\nbase64,YQ==",
        "data:,Hello%20World",
        "data:;charset=utf-8,Hello",
    ],
)
def test_a_whole_url_on_a_host_of_the_list_and_a_data_uri_are_files(text: str) -> None:
    assert files(text) == [("/output", text)]
    assert (links(text), joined_text(text)) == ([], None)
    assert is_inline(text) == text.lower().startswith("data:")


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (f"{URL}\n", URL),
        (f"\n{URL}", URL),
        (f"  \t{URL} \r\n", URL),
        (f"{URL}\u2028", URL),
        (f"\u00a0{URL}\u00a0", URL),
        (f"\ufeff{URL}\u200b", URL),
        (f"\x00{PLAIN}\x1f", PLAIN),
        (f" {DATA}\n", DATA),
        ("https://replicate.delivery/x/my picture.png", "https://replicate.delivery/x/my%20picture.png"),
        (" https://replicate.delivery/x/a b\tc.mp4\n", "https://replicate.delivery/x/a%20b%09c.mp4"),
        ("https://replicate.delivery/x/a\u00a0b.png?c=d e", "https://replicate.delivery/x/a%C2%A0b.png?c=d%20e"),
        ("https://replicate.delivery/a dir/b%20c.png", "https://replicate.delivery/a%20dir/b%20c.png"),
        (f"{URL}.", URL),
        (f"{URL}!?\n", URL),
        (f"{REFUSED},", REFUSED),
    ],
)  # fmt: skip
def test_blanks_and_full_stops_around_a_url_are_cut_and_blanks_in_it_encoded(text: str, source: str) -> None:
    assert files([text]) == [("/output/0", source)]
    assert files({"file": text}) == [("/output/file", source)]
    assert joined_text(text) is None
    assert with_stored_names([text], {source_of(source) if is_inline(source) else source: ["a"]}) == ["a"]


@pytest.mark.parametrize(
    "text",
    [
        "", "https://", "https:///x", "ftp://example.com/a.png", "file:///etc/passwd", "javascript:alert(1)",
        "//replicate.delivery/a.png", "/tmp/out.png", "C:\\o.png", "o.png", "https:replicate.delivery/a.png",
        "data:", "data:,", "data: the numbers, in full", "data:nothing, really", "data:image/png;base64",
        "data: a/b, and c", "metadata:image/png;base64,AAAA", "iVBORw0KGgo=", "it costs 100 %",
        f"as [shown]({LINK})", f"{LINK}/is.png not ours", f"{LINK} {REFUSED}",
    ],
)  # fmt: skip
def test_text_that_only_looks_like_a_file_is_text(text: str) -> None:
    for output in (text, [text], {"a": text}, [text, "words"]):
        assert files(output) == links(output) == []
    assert joined_text(text) == (text or None)


LINKS: list[tuple[Any, list[tuple[str, str]], list[str]]] = [
    (LINK, [("/output", LINK)], []),
    (f" {LINK}\n", [("/output", LINK)], []),
    ([URL, LINK], [("/output/1", LINK)], [URL]),
    ([LINK, "", "\n"], [("/output/0", LINK)], []),
    ({"image": URL, "page": LINK}, [("/output/page", LINK)], [URL]),
    ({"text": f"see {LINK}", "page": LINK}, [("/output/page", LINK)], []),
    ([{"url": LINK}, {"url": LINK}], [("/output/0/url", LINK), ("/output/1/url", LINK)], []),
    ({LINK: 1}, [(f"/output/{escape(LINK)}", LINK)], []),
    ("https://example.com", [("/output", "https://example.com")], []),
    ("https://readme.md", [("/output", "https://readme.md")], []),
    ("https://example.com/?file=a.png", [("/output", "https://example.com/?file=a.png")], []),
    ("http://[::1]/x", [("/output", "http://[::1]/x")], []),
    (["words", LINK, 3], [("/output/1", LINK)], []),
    (["See ", LINK, " for"], [], []),
]


@pytest.mark.parametrize(("output", "expected", "kept"), LINKS, ids=range(len(LINKS)))
def test_a_url_on_another_host_is_a_link(
    output: Any, expected: list[tuple[str, str]], kept: list[str]
) -> None:
    assert links(output) == expected
    assert sources(output) == kept


@pytest.mark.parametrize(
    "url",
    [
        REFUSED,
        "https://files.example.com/Cat.PNG?size=large#top",
        "http://127.0.0.1:9000/a/model.safetensors",
        "https://cdn.example.com/a b.mp4",
        "https://example.com/paper.pdf",
        "https://replicate.delivery.evil.example/a.zip",
    ],
)
def test_a_url_that_names_a_file_on_another_host_counts_as_a_file(url: str) -> None:
    for output in (url, [url, URL], {"a": url}):
        assert sources(output)[0] == url.replace(" ", "%20")
        assert links(output) == []
    assert sources(["words", url]) == []
    assert links(["words", url]) == []


BEAR = "https://replicate.delivery/x/Bär.png"
RAW = 'data:image/svg+xml,<svg a="1" b="2"/>'
IN_TEXT: list[tuple[str, list[str]]] = [
    (f"{URL} is what you asked for", [URL]),
    (f"see {PLAIN}", [PLAIN]),
    (f"See {URL}, {OTHER}; and {PLAIN}.", [URL, OTHER, PLAIN]),
    (f"{URL}\n{OTHER}", [URL, OTHER]),
    (f"{URL},{OTHER}", [URL, OTHER]),
    (f"{URL}{OTHER}", [URL, OTHER]),
    (f"Output:{URL}", [URL]),
    (f"![a cat]({URL}) [{LINK}]({PLAIN}) **{OTHER}**", [URL, PLAIN, OTHER]),
    (f"[{URL}]", [URL]),
    (f"<{URL}>", [URL]),
    (f'<img src="{URL}"/><a href=\'{OTHER}\'>b</a>', [URL, OTHER]),
    (f"`{URL}`", [URL]),
    ("(see https://replicate.delivery/a_(1).png)", ["https://replicate.delivery/a_(1).png"]),
    ("![](https://replicate.delivery/x/my (1) cat.png) and (b)", ["https://replicate.delivery/x/my%20(1)%20cat.png"]),
    (f"| {URL} | {LINK} |", [URL]),
    (json.dumps({"images": [URL, OTHER], "page": LINK}), [URL, OTHER]),
    (json.dumps({"image": URL}).replace("/", "\\/"), [URL]),
    (json.dumps(json.dumps({"image": URL, "text": f"line\n{OTHER}\nend"})), [URL, OTHER]),
    (json.dumps({"image": "https://replicate.delivery/x/my cat.png"}), ["https://replicate.delivery/x/my%20cat.png"]),
    (json.dumps({"image": f"{PLAIN}?a=1&b=2"}).replace("&", "\\u0026"), [f"{PLAIN}?a=1&b=2"]),
    (f"<img src='{PLAIN}?a=1&amp;b=2'>", [f"{PLAIN}?a=1&b=2"]),
    (f"['{URL}', '{OTHER}']", [URL, OTHER]),
    (f"<img src='{PLAIN}'alt='b'>", [PLAIN]),
    (f"图片在{URL}\uff0c请看「{OTHER}」。", [URL, OTHER]),
    (f"图片{URL}请看", [URL]),
    (f"![inline]({DATA}) and {DATA}", [DATA, DATA]),
    (f'{{"image": "{DATA}"}}', [DATA]),
    ("<img src=\"data:image/svg+xml,%3Csvg%20w='1'/%3E\">", ["data:image/svg+xml,%3Csvg%20w='1'/%3E"]),
    ("https://web.archive.org/web/https://replicate.delivery/a.png or so", []),
    # JSON in a string, as encoders write it that escape all but ASCII, or what HTML could take for its own.
    (json.dumps({"a": BEAR, "b": PLAIN}), [BEAR, PLAIN]),
    (json.dumps(json.dumps(["https://replicate.delivery/x/图片.png"])), ["https://replicate.delivery/x/图片.png"]),
    (json.dumps(["https://replicate.delivery/x/🐱.png"]), ["https://replicate.delivery/x/🐱.png"]),
    (json.dumps({"a": f"图片{URL}请看「{OTHER}」"}), [URL, OTHER]),
    (json.dumps([f"“{PLAIN}”", f"“{URL}，”"]), [PLAIN, URL]),  # noqa: RUF001
    (json.dumps({"a": [URL, OTHER]}).replace("/", "\\u002F"), [URL, OTHER]),
    (json.dumps({"a": f"<b>{PLAIN}</b>"}).replace("<", "\\u003C").replace(">", "\\u003e"), [PLAIN]),
    (json.dumps({"a": f"'{PLAIN}'"}).replace("'", "\\u0027"), [PLAIN]),
    (json.dumps({"a": "data:x/y;base64,a+b/cA=="}).replace("+", "\\u002B"), ["data:x/y;base64,a+b/cA=="]),
    (f'<div data-props="{{&quot;src&quot;:&quot;{PLAIN}&quot;}}">', [PLAIN]),
    (f"&lt;img src=&#39;{PLAIN}&#39;&gt; {PLAIN}?lt=1&lt=2", [PLAIN, f"{PLAIN}?lt=1&lt=2"]),
    ("see https://replicate.delivery/x/a\\_b\\_c.png, a **b**", ["https://replicate.delivery/x/a_b_c.png"]),
    # Inline files, raw or wrapped over lines, end with the sign that closes them.
    ("![](data:image/png;base64,iVBORw0K\nGgoAAAA=\n) end", ["data:image/png;base64,iVBORw0K\nGgoAAAA=\n"]),
    ('<img src="data:image/png;base64,iVBO\r\nRw0K"> end', ["data:image/png;base64,iVBO\r\nRw0K"]),
    (json.dumps({"a": "data:x/y;base64,AAAA\nBBBB\n", "b": 1}), ["data:x/y;base64,AAAA\nBBBB\n"]),
    ("see data:x/y;base64,AAAA\nBBBB are words", ["data:x/y;base64,AAAA"]),
    ("![](data:image/svg+xml;utf8,%3Csvg/%3E) end", ["data:image/svg+xml;utf8,%3Csvg/%3E"]),
    ("url(data:image/svg+xml,<svg a='rotate(45)'/>) end", ["data:image/svg+xml,<svg a='rotate(45)'/>"]),
    ("<img src=\"data:image/svg+xml,<svg a='1' b='2'/>\"> end", ["data:image/svg+xml,<svg a='1' b='2'/>"]),
    (json.dumps({"a": RAW, "b": '"'}), [RAW]),
    (json.dumps(json.dumps(['data:image/svg+xml,<svg a="1"/>', '"'])), ['data:image/svg+xml,<svg a="1"/>']),
    (json.dumps({"a": "data:text/csv,a,b\n1,2"}), ["data:text/csv,a,b\n1,2"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), IN_TEXT, ids=range(len(IN_TEXT)))
def test_files_within_text_are_found_beside_it(text: str, expected: list[str]) -> None:
    assert files(text) == [("/output", source) for source in expected]
    assert files({"answer": text, "n": 1}) == [("/output/answer", source) for source in expected]
    assert joined_text(text) == text
    tokens = [text[at : at + 7] for at in range(0, len(text), 7)]
    assert sources(tokens) == expected
    assert joined_text(tokens) == text


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (f"{URL}图片已生成", URL),
        (f"{URL}—done", URL),
        (f"{URL})", URL),
        (f"{URL}\\n", URL),
        (f"{URL}|{LINK}", URL),
        (f"{URL}<br>", URL),
        ("data:x/y;base64,YQ==\nThis is it.", "data:x/y;base64,YQ=="),
        ("data:x/y;base64,YQ%3D%3D is it.", "data:x/y;base64,YQ%3D%3D"),
        ("data:x/y;base64,AAAA\n\nThis is it", "data:x/y;base64,AAAA"),
    ],
)
def test_what_begins_with_a_file_and_goes_on_in_words_is_text(text: str, source: str) -> None:
    for output, pointer in ((text, "/output"), ({"a": text}, "/output/a")):
        assert files(output) == [(pointer, source)]
        assert links(output) == []
    assert joined_text(text) == text


@pytest.mark.parametrize(
    "name",
    ["a.png,b", "a.png!!.jpg", "图片.png", "a—b.mp4", "a(1).png", "a.tar.gz.part1", "plot—1", "a|b.png"],
)
def test_odd_signs_in_a_name_are_no_end_of_it(name: str) -> None:
    url = f"https://replicate.delivery/x/{name}"
    assert files(url) == [("/output", url)]
    assert joined_text(url) is None


@pytest.mark.parametrize(
    "pieces",
    [
        ["data:x/y;base64,", "iVBORw0K", "Ggo="],
        ["data:x/y;base64", ",iVBORw0KGgo="],
        ["data:", "x/y", ";base64,", "iVBORw0KGgo="],
        ["data:x/y;base64,", "iVBORw0KGgo="],
        ["da", "ta:x/y;base64,i", "VBORw0KGgo="],
    ],
)
def test_an_inline_file_in_tokens_is_joined(pieces: list[str]) -> None:
    assert files(["Here: ", *pieces, " it is"]) == [("/output", "data:x/y;base64,iVBORw0KGgo=")]
    assert files(["Here: ", "data:x/y;base64,", " it is"])[0][1] == "data:x/y;base64,"


def test_stored_names_stand_in_text_where_the_urls_stood() -> None:
    text = f"![a cat]({URL}) or {URL}, but not {LINK} and {PLAIN}."
    names = {URL: ["output-0.png"], PLAIN: ["output-1.bin"]}
    assert (
        with_stored_names(text, names)
        == f"![a cat](output-0.png) or output-0.png, but not {LINK} and output-1.bin."
    )
    tokens = ["See ", URL, " and htt", "ps://replicate.delivery", "/pbxt/GhI/out", ", ok"]
    assert with_stored_names(tokens, names) == ["See ", "output-0.png", " and output-1.bin", "", "", ", ok"]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["See ", URL, " for"], [("/output/1", URL)]),
        (["A caption", URL, OTHER], [("/output/1", URL), ("/output/2", OTHER)]),
        ([URL, OTHER, "A caption"], [("/output/0", URL), ("/output/1", OTHER)]),
        (["caption", DATA, DATA], [("/output/1", DATA), ("/output/2", DATA)]),
        (["https://replicate.deli", "very/a", ".png", " is it"], [("/output", "https://replicate.delivery/a.png")]),
        (["https://replicate.delivery/a", ".png", " is it"], [("/output", "https://replicate.delivery/a.png")]),
        (["", "![", "](", URL, ")", ""], [("/output/3", URL)]),
        (["See ", f"{PLAIN}.tar", ".gz", " for"], [("/output", f"{PLAIN}.tar.gz")]),
        (["See ", URL, "?size=1", " for"], [("/output", f"{URL}?size=1")]),
        (["See ", LINK, " and ", REFUSED], []),
        (["See ", f" {URL}\n"], [("/output/1", URL)]),
    ],
    ids=range(11),
)  # fmt: skip
def test_a_list_with_words_in_it_is_text_whatever_urls_are_among_them(
    tokens: list[str], expected: list[tuple[str, str]]
) -> None:
    assert files(tokens) == expected
    assert links(tokens) == []
    assert joined_text(tokens) == "".join(tokens)


@pytest.mark.parametrize(
    ("setting", "url", "is_file"),
    [
        ("*", "https://anything.example/page", True),
        ("*", "http://anything.example/page", False),
        ("*", "https://10.0.0.1/page", False),
        ("replicate.delivery http://127.0.0.1:9000", "http://127.0.0.1:9000/page", True),
        ("replicate.delivery http://127.0.0.1:9000", "http://127.0.0.1:9001/page", False),
        ("*.example.com", "https://a.example.com/page", True),
        ("*.example.com", "https://example.com/page", False),
        ("* http://minio:9000", "http://minio:9000/page", True),
    ],
)
def test_the_setting_says_what_is_a_file(setting: str, url: str, *, is_file: bool) -> None:
    rules = HostRules.parse(setting)
    for output in (url, {"a": url}):
        found = find(output, rules)
        assert [len(found.files), len(found.links)] == [is_file, not is_file]
    assert len(find(f"see {url}.", rules).files) == is_file


@settings(deadline=None)
@given(OUTPUTS)
def test_every_pointer_resolves_and_every_spot_is_a_file_a_link_or_in_text(output: Any) -> None:
    found = find(output, RULES)
    for file in [*found.files, *found.links]:
        value, last = resolve({"output": output}, file.pointer)
        assert file.source in "".join(texts_of(value)) + str(last)
    known = {file.source for file in [*found.files, *found.links]}
    for spot in find_spots(output):
        assert spot.source in known or not spot.is_whole


def test_a_long_pointer_is_that_of_the_nearest_member_above() -> None:
    key = "k" * 2000
    assert files({"a": {key: [URL, {"b": OTHER}]}}) == [("/output/a", URL), ("/output/a", OTHER)]
    assert files({"é" * 500: URL}) == [(f"/output/{'é' * 500}", URL)]
    assert files({"é" * 510: URL, "/" * 600: OTHER}) == [("/output", URL), ("/output", OTHER)]


def test_the_pointers_of_one_output_have_a_bound_each_and_together() -> None:
    found = find({"k" * 1000: [URL] * 2000}, RULES).files
    assert len(found) == 2000
    lengths = [len(file.pointer) for file in found]
    assert max(lengths) <= MAX_POINTER
    assert sum(lengths) <= MAX_POINTERS + 2000 * len("/output")
    assert found[0].pointer == f"/output/{'k' * 1000}/0"


def test_only_so_many_sources_are_looked_at_and_that_there_are_more_is_said() -> None:
    assert find([URL] * 3, RULES, most=3).is_all
    assert not find([URL] * 4, RULES, most=3).is_all
    assert len(find([LINK] * (MAX_LINKS + 1), RULES).links) == MAX_LINKS
    assert find([LINK] * MAX_SPOTS, RULES).is_all
    assert not find([*[LINK] * MAX_SPOTS, URL], RULES).is_all


@pytest.mark.parametrize("sign", ["k", "/", "é"])
def test_a_long_key_is_not_spelled_for_each_file_below_it(sign: str) -> None:
    output = {sign * (1 << 20): [URL] * 1500}
    began = time.process_time()
    found = find(output, RULES).files
    assert time.process_time() - began < 1.5, "to spell it once takes milliseconds"
    assert [file.pointer for file in found] == ["/output"] * 1500


@pytest.mark.parametrize(
    "many",
    [
        lambda number: [URL] * number,
        lambda number: " ".join([URL] * number),
        lambda number: {f"{URL}{one}": None for one in range(number)},
        lambda number: ["words ", *[URL, " and "] * number],
        lambda number: [[DATA]] * number,
    ],
)
def test_only_so_many_sources_are_replaced_and_the_others_stay(many: Callable[[int], Any]) -> None:
    asked: list[str] = []
    replaced(many(MAX_SPOTS + 50), asked.append)
    assert len(asked) == MAX_SPOTS


@pytest.mark.parametrize(
    ("output", "source"),
    [
        (f"{URL[:-4]} {{}}.png", None),
        (f"see ({URL[:-4]} {{}}.png) there", URL[:-4]),
        (f'see "{URL[:-4]} {{}}.png" there', URL[:-4]),
        ('see "data:text/plain,a {} b" there', "data:text/plain,a"),
        ("see (data:text/plain,a {} b) there", "data:text/plain,a"),
    ],
)
def test_what_is_quoted_holds_blanks_up_to_a_length(output: str, source: str | None) -> None:
    ((_, short),) = files(output.format("x " * 100))
    assert "x" in short
    assert len(short) > 200
    ((_, long),) = files(output.format("x " * 40_000))
    assert long == (source or URL[:-4])


@pytest.mark.parametrize(
    ("sign", "link"), [("é", "="), ("\u4e00", "/"), ("—", "?"), ("\N{CAT}", "&"), ("ü", "%")]
)
def test_names_before_words_that_are_not_set_apart_are_read_once(sign: str, link: str) -> None:
    text = "see " + f"https://a/b.png{sign}{link}" * 8_000
    began = time.process_time()
    assert sum(1 for _ in find_spots(text)) > 0
    assert time.process_time() - began < 1.0, "it takes some hundredths of a second"


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("words", "words"),
        (["", "To ", "be", "", ".\n"], "To be.\n"),
        (["\n\n", "Here is"], "\n\nHere is"),
        ([f"{URL} is nice"], f"{URL} is nice"),
        ([f"{URL}\n", "end"], f"{URL}\nend"),
        (["words", URL], f"words{URL}"),
        (["words", LINK, DATA], f"words{LINK}{DATA}"),
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
        (LINK, None),
        ([URL], None),
        ([URL, LINK, "", "\n"], None),
        (DATA, None),
    ],
)
def test_text_and_lists_with_words_are_joined_and_nothing_else_is(output: Any, text: str | None) -> None:
    assert joined_text(output) == text


def stored_names(output: Any) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for number, file in enumerate(find(output, RULES).files):
        source = source_of(file.source) if file.is_inline else file.source
        names.setdefault(source, []).append(f"output-{number}.png")
    return names


def test_stored_names_take_the_place_of_sources_and_nothing_else_changes() -> None:
    output = {"images": [URL, OTHER, URL], URL: {"score": 1, "page": LINK}, "a/~": DATA, "n": None}
    copy = with_stored_names(output, stored_names(output))
    assert copy == {
        "images": ["output-0.png", "output-1.png", "output-2.png"],
        "output-3.png": {"score": 1, "page": LINK},
        "a/~": "output-4.png",
        "n": None,
    }
    assert list(copy) == ["images", "output-3.png", "a/~", "n"]
    assert output["images"] == [URL, OTHER, URL]


def test_a_url_key_and_the_url_it_leads_to_get_different_names() -> None:
    assert with_stored_names({URL: OTHER}, stored_names({URL: OTHER})) == {"output-0.png": "output-1.png"}


def test_a_source_that_was_not_stored_stays() -> None:
    assert with_stored_names([URL, OTHER], {OTHER: ["output-1.png"]}) == [URL, "output-1.png"]


def test_a_key_is_not_renamed_onto_another() -> None:
    output = {"output-0.png": "mine", URL: "theirs"}
    assert with_stored_names(output, {URL: ["output-0.png"]}) == output


@settings(deadline=None)
@given(OUTPUTS)
def test_without_names_the_output_stays_as_it_is(output: Any) -> None:
    assert with_stored_names(output, {}) == output
    assert replaced(output, lambda _: None) == output


@settings(deadline=None)
@given(OUTPUTS)
def test_with_names_no_source_is_left_and_nothing_is_lost(output: Any) -> None:
    copy = with_stored_names(output, stored_names(output))
    assert not {file.source for file in find(output, RULES).files} & {one.source for one in find_spots(copy)}
    assert len(list(texts_of(copy))) == len(list(texts_of(output)))


@settings(deadline=None)
@given(OUTPUTS)
def test_what_is_replaced_is_asked_for_in_order_of_appearance(output: Any) -> None:
    asked: list[str] = []
    replaced(output, asked.append)
    assert asked == [spot.source for spot in find_spots(output)]


@settings(deadline=None)
@given(st.text(), st.text())
def test_escaped_parts_stay_apart(one: str, other: str) -> None:
    assert "/" not in escape(one)
    assert resolve({one: 1}, f"/{escape(one)}") == (1, one)
    assert (escape(one) == escape(other)) == (one == other)


def test_a_file_says_whether_it_is_inline() -> None:
    assert OutputFile("/output", "DATA:,x").is_inline
    assert not OutputFile("/output", URL).is_inline
