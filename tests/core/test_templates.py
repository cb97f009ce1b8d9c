import math
from contextlib import suppress
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import Permanent
from app.core.templates import FILE_KEYS, files_used, parse, placeholders, render, spell

DATA: dict[str, Any] = {
    "id": "abc",
    "kind": "prediction",
    "status": "succeeded",
    "model": "owner/name",
    "version": None,
    "input": {"prompt": "größer {x}", "seed": 7, "size": {"w": 1.5, "h": None}, "flags": [True, False]},
    "output": ["A", " river", ""],
    "files": [
        {"name": "output-0.png", "url": "https://keep/0", "size": 3},
        {"name": "output-1.png", "url": "https://keep/1", "size": 4},
    ],
    "error": None,
    "metrics": {"predict_time": 1.25},
    "logs": "",
    "created_at": "2026-03-16T10:00:01.000Z",
    "completed_at": None,
    "query": {"customId": "1"},
    "context": {"order": 42, "outkeep": {"parent": "x"}},
    "lost": [],
    "truncated": [],
}


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("plain", "plain"),
        ("", ""),
        ("{files[0].url}", "https://keep/0"),
        ("{files[1].size}", 4),
        ("{files}", DATA["files"]),
        ("{files[0]}", DATA["files"][0]),
        ("{id}", "abc"),
        ("{input.seed}", 7),
        ("{input.size.h}", None),
        ("{input.flags[1]}", False),
        ("{error}", None),
        ("{output}", ["A", " river", ""]),
        ("{output[1]}", " river"),
        ("{context.order}", 42),
        ("say: {output}!", "say: A river!"),
        ("{id}-{input.seed}", "abc-7"),
        ("{input.size.w} {input.flags[0]}", "1.5 true"),
        ("{input.prompt}", "größer {x}"),
        (" {input.prompt}", " größer {x}"),
        ("{{id}}", "{id}"),
        ("{{{id}}}", "{abc}"),
        ("{{", "{"),
        ("}}", "}"),
        (7, 7),
        (2.5, 2.5),
        (True, True),
        ({"a": ["{id}", {"b": "{input.seed}"}], "c": 1}, {"a": ["abc", {"b": 7}], "c": 1}),
        ({"{id}": 1}, {"{id}": 1}),
    ],
)
def test_a_template_becomes_the_input(template: Any, value: Any) -> None:
    assert render(parse(template), DATA) == value


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{", "has a brace without its partner"),
        ("}", "has a brace without its partner"),
        ("a { b", "has a brace without its partner"),
        ("{{}", "has a brace without its partner"),
        ("{id", "has a brace without its partner"),
        ("{}", "{} is no placeholder"),
        ("{ id }", "is no placeholder"),
        ("{id!r}", "is no placeholder"),
        ("{id:>10}", "is no placeholder"),
        ("{files[-1].url}", "is no placeholder"),
        ("{files[0]url}", "is no placeholder"),
        ("{files[x].url}", "is no placeholder"),
        ("{files[0000000].url}", "is no placeholder"),
        ("{files[\u0660].url}", "is no placeholder"),
        ("{input..x}", "is no placeholder"),
        ("{.id}", "is no placeholder"),
        ("{0}", "is no placeholder"),
        ("{id\n}", "is no placeholder"),
        ("{prompt}", "{prompt} names nothing of an event"),
        ("{data.id}", "names nothing of an event"),
        ("{__class__}", "names nothing of an event"),
        ("{truncated}", "names nothing of an event"),
        ("{id.x}", "id is a text and has no members"),
        ("{id.__class__.__init__.__globals__}", "id is a text and has no members"),
        ("{logs[0]}", "logs is a text"),
        ("{files.url}", "files is a list; write files[0]"),
        ("{files[0].path}", "a file has media_type, name,"),
        ("{files[0].url.x}", "a file has media_type, name,"),
        (math.inf, "JSON has no float"),
        (math.nan, "JSON has no float"),
        (date(2026, 1, 1), "JSON has no date"),
        ({"a": {1: "{nothing}"}}, "names nothing of an event"),
    ],
)
def test_what_could_never_resolve_is_refused_at_the_start(template: Any, reason: str) -> None:
    with pytest.raises(Permanent) as caught:
        parse(template)
    assert caught.value.code == "bad_template"
    assert reason in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{files[2].url}", "the event has no {files[2].url}"),
        ("{input.image}", "the event has no {input.image}"),
        ("{input.prompt.x}", "the event has no {input.prompt.x}"),
        ("{input.prompt[0]}", "the event has no {input.prompt[0]}"),
        ("{input.flags.0}", "the event has no {input.flags.0}"),
        ("{input[0]}", "the event has no {input[0]}"),
        ("{context.order.__class__}", "the event has no {context.order.__class__}"),
        ("{files[0].sha256}", "the event has no {files[0].sha256}"),
        ("a {error}", "{error} is null in the event, and cannot be part of a text"),
        ("a {input.size}", "{input.size} is dict in the event"),
        ("a {input.flags}", "{input.flags} is list in the event"),
        ("a {files}", "{files} is list in the event"),
    ],
)
def test_what_this_event_does_not_hold_is_told_with_its_placeholder(template: Any, reason: str) -> None:
    with pytest.raises(Permanent) as caught:
        render(parse({"x": [template]}), DATA)
    assert caught.value.code == "input_unresolved"
    assert reason in caught.value.message


def test_too_deep_is_refused() -> None:
    template: Any = "{id}"
    for _ in range(30):
        template = [template]
    with pytest.raises(Permanent, match="nests deeper"):
        parse(template)


def test_values_of_the_event_are_never_read_as_templates() -> None:
    data = {**DATA, "input": {"prompt": "{logs}{{", "x": {"y": "{id}"}}}
    assert render(parse(["{input.prompt}", "a{input.prompt}", "{input.x}"]), data) == [
        "{logs}{{",
        "a{logs}{{",
        {"y": "{id}"},
    ]


@pytest.mark.parametrize(
    ("template", "used"),
    [
        ({"image": "{files[0].url}"}, {0}),
        ({"images": ["{files[1].url}", "x {files[0].url}"]}, {0, 1}),
        ({"images": "{files}"}, {0, 1, 2}),
        ({"image": "{files[2]}"}, {2}),
        ({"image": "{files[3].url}"}, set()),
        ({"name": "{files[0].name}", "prompt": "{output}"}, set()),
        ({}, set()),
    ],
)
def test_only_files_that_the_model_is_given_are_uploaded(template: Any, used: set[int]) -> None:
    assert files_used(parse(template), 3) == used


@pytest.mark.parametrize("key", sorted(FILE_KEYS))
def test_a_placeholder_is_spelled_as_it_was_written(key: str) -> None:
    text = f"{{files[12].{key}}}"
    assert [spell(path) for path in placeholders(parse({"a": [text]}))] == [text]


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from(["{", "}", "id", "files", "[0]", ".url", " "])).map("".join))
def test_no_text_raises_anything_but_our_own_error(text: str) -> None:
    with suppress(Permanent):
        render(parse(text), DATA)


@pytest.mark.parametrize(
    "text", ["{input.prompt}", "a {input.prompt} b", "{input}", "{output}", "{output[0]}{input.prompt}"]
)
def test_large_values_that_are_named_many_times_are_refused_before_they_are_written(text: str) -> None:
    data = {"input": {"prompt": "x" * (1 << 20)}, "output": ["y" * (1 << 20)]}
    assert render(parse({"a": text}), data)
    template = parse({str(number): text for number in range(1000)})
    with pytest.raises(Permanent) as caught:
        render(template, data)
    assert caught.value.code == "input_too_large"
