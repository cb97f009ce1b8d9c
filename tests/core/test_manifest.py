import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.context import Query
from app.core.errors import Permanent
from app.core.hosts import HostRules
from app.core.inputs import find_inputs
from app.core.manifest import KeptFile, Manifest, Receipt, build, format_time, mended, read
from app.core.names import Kind
from app.core.outputs import OutputFile, find
from app.core.prediction import from_object

RULES = HostRules.parse("replicate.delivery *.replicate.delivery storage.googleapis.com")
URL = "https://replicate.delivery/pbxt/AbC/out-0.png"
LINK = "https://en.wikipedia.org/wiki/Cat"
REFUSED = "https://files.example.com/cat.png"
RECEIVED = datetime(2025, 6, 9, 7, 5, 42, 5000, tzinfo=UTC)
STORED = datetime(2025, 6, 9, 7, 5, 43, tzinfo=UTC)
RECEIPT = Receipt(received_at=RECEIVED, webhook_id="msg_1", query={"customId": "ü 1"}, context={"user": 7})

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=8,
)


def kept(place: OutputFile, number: int) -> KeptFile:
    return KeptFile(place.pointer, place.source, f"output-{number}.png", "image/png", 8, "ab" * 32)


def lost(place: OutputFile) -> KeptFile:
    return KeptFile(place.pointer, place.source, error="not_found")


def manifest_of(raw: dict[str, Any], *, losses: Sequence[int] = (), kind: Kind = Kind.PREDICTION) -> Manifest:
    prediction = from_object(raw, kind)
    files = [
        (place, lost(place) if number in losses else kept(place, number))
        for number, place in enumerate(find(prediction.output, RULES).files)
    ]
    return build(prediction, files, None, RECEIPT, STORED)


def with_output(output: Any, **more: Any) -> dict[str, Any]:
    return {"id": "a", "status": "succeeded", "output": output, **more}


def document_of(manifest: Manifest) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(manifest.to_json())
    return document


def test_every_sample_comes_back_from_its_manifest_unchanged(samples: list[dict[str, Any]]) -> None:
    for sample in samples:
        manifest = manifest_of(sample["object"], kind=Kind(sample["kind"]))
        again = read(manifest.to_json())
        assert again == manifest
        assert again.prediction.raw == sample["object"]
        assert json.dumps(again.prediction.raw) == json.dumps(sample["object"])


@settings(deadline=None)
@given(JSON, st.dictionaries(st.text(), st.text(), max_size=3), JSON)
def test_any_object_comes_back_unchanged(value: Any, query: Query, context: Any) -> None:
    manifest = manifest_of(with_output(value, metrics=value))
    manifest = replace(manifest, receipt=replace(RECEIPT, query=query, context=context))
    assert read(manifest.to_json()) == manifest


def test_numbers_and_letters_of_every_size_come_back() -> None:
    odd = {"big": -(10**4000), "float": 0.1 + 0.2, "tiny": 5e-324, "é\u2028\U0001f600\0": "\x7f\u202e"}
    again = read(manifest_of(with_output(odd)).to_json())
    assert again is not None
    assert again.prediction.raw["output"] == odd
    assert again.output == odd


def test_it_has_the_keys_of_the_contract_in_plain_words() -> None:
    manifest = manifest_of(with_output([URL, "words"]), losses=())
    assert document_of(manifest) == {
        "outkeep": 1,
        "kind": "prediction",
        "id": "a",
        "prediction": {"id": "a", "status": "succeeded", "output": [URL, "words"]},
        "files": [
            {
                "name": "output-0.png",
                "pointer": "/output/0",
                "source": URL,
                "media_type": "image/png",
                "size": 8,
                "sha256": "ab" * 32,
                "error": None,
            }
        ],
        "links": [],
        "output": ["output-0.png", "words"],
        "received_at": "2025-06-09T07:05:42.005Z",
        "stored_at": "2025-06-09T07:05:43.000Z",
        "webhook_id": "msg_1",
        "source": "webhook",
        "parent": None,
        "query": {"customId": "ü 1"},
        "context": {"user": 7},
    }
    assert "ü 1".encode() in manifest.to_json()


def test_links_come_back_and_one_that_was_written_before_there_were_any_is_read() -> None:
    prediction = from_object(with_output([URL, LINK]), Kind.PREDICTION)
    found = find(prediction.output, RULES)
    manifest = build(
        prediction, [(found.files[0], kept(found.files[0], 0))], None, RECEIPT, STORED, links=found.links
    )
    assert document_of(manifest)["links"] == [{"pointer": "/output/1", "url": LINK}]
    assert document_of(manifest)["output"] == ["output-0.png", LINK]
    assert manifest.lost == ()
    assert read(manifest.to_json()) == manifest
    old = document_of(manifest)
    del old["links"]
    assert read(json.dumps(old).encode()) == replace(manifest, links=())


def test_what_was_refused_is_told_from_other_losses_and_can_be_mended() -> None:
    raw = with_output({"a": URL, "b": REFUSED, "text": f"see {URL}"}, input={"image": REFUSED})
    prediction = from_object(raw, Kind.PREDICTION)
    first, second, third = find(prediction.output, RULES).files
    refused = KeptFile(second.pointer, second.source, error="host_refused")
    given = KeptFile("/input/image", REFUSED, error="host_refused")
    files = [(first, lost(first)), (second, refused), (third, kept(third, 2))]
    manifest = build(prediction, files, None, RECEIPT, STORED, inputs=[given])
    assert manifest.refused == {1: refused}
    later = STORED + timedelta(minutes=5)
    better = mended(manifest, {1: kept(second, 1)}, later)
    assert better.replaces(manifest)
    assert better.files == (lost(first), kept(second, 1), kept(third, 2), given)
    assert better.output == {"a": "output-2.png", "b": "output-1.png", "text": "see output-2.png"}
    assert (better.stored_at, better.refused) == (later, {})


def test_each_key_stands_on_a_line_of_its_own_for_people() -> None:
    lines = manifest_of(with_output([URL, "two\nlines"])).to_json().decode().split("\n")
    assert lines[0] == "{"
    assert [line.partition(":")[0] for line in lines[1:3]] == ['"outkeep"', '"kind"']
    assert len(lines) == len(KEYS) + 3
    assert lines[-1] == "}"


def test_what_was_lost_keeps_its_source_in_the_output_and_its_reason_in_the_list() -> None:
    manifest = manifest_of(with_output([URL, URL + "2"]), losses=[0])
    assert manifest.output == [URL, "output-1.png"]
    assert [file.name for file in manifest.kept] == ["output-1.png"]
    assert manifest.lost == (KeptFile("/output/0", URL, error="not_found"),)
    assert document_of(manifest)["files"][0] == {
        "name": None, "pointer": "/output/0", "source": URL, "media_type": None, "size": None,
        "sha256": None, "error": "not_found",
    }  # fmt: skip


def test_text_that_we_joined_comes_last_and_leaves_the_output_as_it_is() -> None:
    text = KeptFile("/output", None, "output.txt", "text/plain", 5, "cd" * 32)
    manifest = build(from_object(with_output(["to", " be"]), Kind.PREDICTION), [], text, RECEIPT, STORED)
    assert manifest.files == (text,)
    assert manifest.output == ["to", " be"]
    assert read(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    ("new", "old", "may"),
    [
        ([], [0, 1], "replace"),
        ([1], [0, 1], "replace"),
        ([], [0], "replace"),
        ([], [], "not"),
        ([0], [], "not"),
        ([0], [0], "not"),
        ([0], [1], "not"),
        ([0, 1], [0], "not"),
    ],
)
def test_only_a_manifest_with_fewer_losses_replaces_another(new: list[int], old: list[int], may: str) -> None:
    raw = with_output([URL, URL + "2"])
    assert manifest_of(raw, losses=new).replaces(manifest_of(raw, losses=old)) == (may == "replace")


def test_any_manifest_stands_where_there_is_none() -> None:
    assert manifest_of(with_output([URL]), losses=[0]).replaces(None)


def with_inputs(outputs: Sequence[int], inputs: Sequence[int]) -> Manifest:
    """A manifest of two outputs and two inputs, of which those with these numbers are lost."""
    prediction = from_object(with_output([URL, URL + "2"], input={"image": [URL, URL]}), Kind.PREDICTION)
    places = list(find(prediction.output, RULES).files)
    files = [
        (place, lost(place) if number in outputs else kept(place, number))
        for number, place in enumerate(places)
    ]
    given = [
        lost(place) if number in inputs else KeptFile(place.pointer, URL, f"input-image-{number}.png")
        for number, place in enumerate(one.place for one in find_inputs(prediction.raw["input"]))
    ]
    return build(prediction, files, None, RECEIPT, STORED, inputs=given)


def test_inputs_come_last_and_their_loss_is_no_loss_of_outputs() -> None:
    manifest = with_inputs([1], [0])
    assert [file.pointer for file in manifest.files] == [
        "/output/0", "/output/1", "/input/image/0", "/input/image/1"
    ]  # fmt: skip
    assert [file.pointer for file in manifest.lost] == ["/output/1"]
    assert [file.pointer for file in manifest.lost_inputs] == ["/input/image/0"]
    assert [file.name for file in manifest.kept] == ["output-0.png", "input-image-1.png"]
    assert read(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    ("new", "old", "may"),
    [
        (([], [0]), ([], [0, 1]), True),
        (([], [0]), ([], [0]), False),
        (([0], []), ([], [0, 1]), False),
        (([], [0, 1]), ([0], []), True),
    ],
)
def test_a_manifest_is_judged_by_its_outputs_first(new: Any, old: Any, *, may: bool) -> None:
    assert with_inputs(*new).replaces(with_inputs(*old)) is may


def test_a_manifest_torn_anywhere_reads_as_none() -> None:
    data = manifest_of(with_output([URL, "ü"])).to_json()
    assert all(read(data[:size]) is None for size in range(len(data)))


def test_a_manifest_of_which_only_the_length_was_written_reads_as_none() -> None:
    data = manifest_of(with_output([URL])).to_json()
    for written in range(0, len(data), 7):
        assert read(data[:written] + bytes(len(data) - written)) is None
    assert read(bytes(4096)) is None


def test_each_torn_sample_reads_as_none(samples: list[dict[str, Any]]) -> None:
    for sample in samples:
        data = manifest_of(sample["object"]).to_json()
        step = max(len(data) // 8, 1)
        assert all(read(data[:size]) is None for size in [*range(0, len(data), step), len(data) - 1])


def document(**changes: Any) -> bytes:
    return json.dumps({**document_of(manifest_of(with_output([URL]))), **changes}).encode()


def without(key: str) -> bytes:
    whole = document_of(manifest_of(with_output([URL])))
    del whole[key]
    return json.dumps(whole).encode()


KEYS = sorted(document_of(manifest_of(with_output([URL]))).keys() - {"id"})


@pytest.mark.parametrize(
    "data",
    [
        b"null",
        b"7",
        b"[]",
        b'"text"',
        b"{}",
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        document(outkeep=2),
        document(outkeep="1"),
        document(kind="poem"),
        document(prediction=[]),
        document(prediction={"id": "../x", "status": "succeeded"}),
        document(files=None),
        document(files=[7]),
        document(files=["text"]),
        document(files=[{"pointer": "/output"}]),
        document(files=[{"pointer": "", "source": None, "colour": "red"}]),
        document(received_at=None),
        document(received_at="soon"),
        document(stored_at=7),
        document(links=None),
        document(links=[{"pointer": "/output"}]),
        *(without(key) for key in KEYS if key != "links"),
    ],
)
def test_what_is_whole_but_not_ours_to_read_is_never_taken_for_absent(data: bytes) -> None:
    with pytest.raises(Permanent) as caught:
        read(data)
    assert caught.value.code == "manifest_unreadable"


@settings(deadline=None)
@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_are_taken_for_a_manifest(data: bytes) -> None:
    with suppress(Permanent):
        assert read(data) is None


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (datetime(2024, 4, 18, 17, 21, 55, tzinfo=UTC), "2024-04-18T17:21:55.000Z"),
        (datetime(2024, 4, 18, 17, 21, 55, 999999, tzinfo=UTC), "2024-04-18T17:21:55.999Z"),
        (
            datetime(2024, 4, 18, 1, 21, 55, tzinfo=timezone(timedelta(hours=2))),
            "2024-04-17T23:21:55.000Z",
        ),
    ],
)
def test_times_are_written_in_utc_with_milliseconds(time: datetime, text: str) -> None:
    assert format_time(time) == text
