from typing import Any

import pytest

from app.core.errors import Permanent
from app.core.request import (
    LocalFile,
    local_files,
    parse_context,
    parse_input,
    with_urls,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("7", 7), ("-0.5", -0.5), ("1e3", 1000.0), ("true", True), ("false", False)),
        *(("[1, 2]", [1, 2]), ('{"a": null}', {"a": None}), ("[]", [])),
        *(
            ("", ""),
            ("a hat", "a hat"),
            ("007", "007"),
            ("null", "null"),
            ("NaN", "NaN"),
            ("Infinity", "Infinity"),
        ),
        *(('"quoted"', '"quoted"'), ("True", "True"), ("a=b", "a=b"), ("[1", "[1"), ("1\n2", "1\n2")),
        ("[" * 100_000, "[" * 100_000),
        ("https://example.com/?a=1&b=2", "https://example.com/?a=1&b=2"),
        *(("@a/b.png", LocalFile("a/b.png")), ("a@b", "a@b")),
    ],
)
def test_a_value_is_json_a_file_or_text(text: str, value: Any) -> None:
    assert parse_input([f"key={text}"], {}) == {"key": value}


def test_values_add_up_to_lists_and_to_what_was_given() -> None:
    pairs = ["images[]=@a.png", "images[]=https://example.com/b.png", "seed=1", "tags[]=x"]
    assert parse_input(pairs, {"seed": 7, "tags": ["y"], "style": "oil"}) == {
        "images": [LocalFile("a.png"), "https://example.com/b.png"],
        "seed": 1,
        "tags": ["y", "x"],
        "style": "oil",
    }


@pytest.mark.parametrize("pairs", [["a"], ["=1"], [""], ["a=1", "a=2"], ["a=1", "a[]=2"], ["a[]=1", "a=2"]])
def test_what_is_no_pair_or_given_twice_is_a_mistake(pairs: list[str]) -> None:
    with pytest.raises(Permanent) as raised:
        parse_input(pairs, {})
    assert raised.value.code == "bad_input"


@pytest.mark.parametrize(
    ("pairs", "given"),
    [(["a=b\udcff"], {}), (["\udcff=1"], {}), (["a=1"], {"b": float("nan")}), (["a=1e999"], {})],
)
def test_what_json_cannot_hold_is_a_mistake(pairs: list[str], given: dict[str, Any]) -> None:
    with pytest.raises(Permanent) as raised:
        parse_input(pairs, given)
    assert raised.value.code == "bad_input"


def test_the_name_of_a_file_may_be_any_bytes() -> None:
    assert parse_input(["image=@\udcff.png"], {}) == {"image": LocalFile("\udcff.png")}


def test_files_become_the_urls_they_were_uploaded_to() -> None:
    a, b = LocalFile("a"), LocalFile("b")
    given = {"image": a, "more": [{"deep": b}, a], "prompt": "@a"}
    assert list(local_files(given)) == [a, b, a]
    assert with_urls(given, {a: "A", b: "B"}) == {"image": "A", "more": [{"deep": "B"}, "A"], "prompt": "@a"}


def test_a_context_is_text() -> None:
    assert parse_context(["order=42", "empty=", "a=b=c"]) == {"order": "42", "empty": "", "a": "b=c"}


@pytest.mark.parametrize("pairs", [["order"], ["=42"], ["outkeep=x"], ["a=1", "a=2"], ["a=\udcff"]])
def test_a_context_has_names_that_are_not_ours_once_each(pairs: list[str]) -> None:
    with pytest.raises(Permanent) as raised:
        parse_context(pairs)
    assert raised.value.code == "bad_context"
