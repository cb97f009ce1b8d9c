import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core import event as events
from app.core.data_uri import source_of
from app.core.event import MAX_BYTES, MAX_LOGS, encode
from app.core.hosts import HostRules
from app.core.manifest import KeptFile, Manifest, Receipt, build, read
from app.core.names import Kind
from app.core.outputs import find
from app.core.prediction import from_object

RULES = HostRules.parse("replicate.delivery *.replicate.delivery storage.googleapis.com")
URL = "https://replicate.delivery/pbxt/AbC/out-{}.png"
LINK = "https://en.wikipedia.org/wiki/Cat"
RECEIPT = Receipt(
    received_at=datetime(2025, 6, 9, 7, 5, 42, tzinfo=UTC),
    webhook_id="msg_1",
    query={"customId": "1"},
    context={"user": 7},
)
STORED = datetime(2025, 6, 9, 7, 5, 43, tzinfo=UTC)
WHOLE = "https://keep.example/files/prediction.json"

DATA_KEYS = {
    "id", "kind", "status", "model", "version", "input", "output", "files", "error", "metrics", "logs",
    "created_at", "completed_at", "query", "context", "links", "lost", "truncated",
}  # fmt: skip


def link(name: str) -> str:
    return f"https://keep.example/files/{name}"


def manifest_of(raw: dict[str, Any], *, losses: int = 0, kind: Kind = Kind.PREDICTION) -> Manifest:
    """As it is after all but the first `losses` files were kept."""
    prediction = from_object({"id": "a", "status": "succeeded", **raw}, kind)
    kept = []
    for number, place in enumerate(find(prediction.output, RULES).files):
        source = source_of(place.source) if place.is_inline else place.source
        file = KeptFile(place.pointer, source, f"output-{number}.png", "image/png", 8, "ab" * 32)
        if number < losses:
            file = KeptFile(place.pointer, place.source, error="gone")
        kept.append((place, file))
    return build(prediction, kept, None, RECEIPT, STORED)


def event_of(raw: dict[str, Any], *, losses: int = 0, kind: Kind = Kind.PREDICTION) -> dict[str, Any]:
    """The event as a handler reads it."""
    event: dict[str, Any] = json.loads(encode(events.build(manifest_of(raw, losses=losses, kind=kind), link)))
    return event


def data_of(raw: dict[str, Any], *, losses: int = 0) -> dict[str, Any]:
    data: dict[str, Any] = event_of(raw, losses=losses)["data"]
    return data


def test_an_event_says_what_the_contract_says() -> None:
    raw = {
        "model": "owner/name",
        "version": "hidden",
        "input": {"prompt": "a cat"},
        "output": [URL.format(0), URL.format(1)],
        "error": None,
        "metrics": {"predict_time": 0.5},
        "logs": "done\n",
        "created_at": "2025-06-09T07:02:34.263Z",
        "completed_at": "2025-06-09T07:05:41.882143865Z",
        "urls": {"get": "https://api.replicate.com/v1/predictions/a"},
    }
    assert event_of(raw, losses=1) == {
        "type": "prediction.succeeded",
        "timestamp": "2025-06-09T07:05:43.000Z",
        "data": {
            "id": "a",
            "kind": "prediction",
            "status": "succeeded",
            "model": "owner/name",
            "version": "hidden",
            "input": {"prompt": "a cat"},
            "output": [URL.format(0), "output-1.png"],
            "files": [
                {
                    "name": "output-1.png",
                    "url": "https://keep.example/files/output-1.png",
                    "pointer": "/output/1",
                    "source": URL.format(1),
                    "media_type": "image/png",
                    "size": 8,
                    "sha256": "ab" * 32,
                }
            ],
            "error": None,
            "metrics": {"predict_time": 0.5},
            "logs": "done\n",
            "created_at": "2025-06-09T07:02:34.263Z",
            "completed_at": "2025-06-09T07:05:41.882143865Z",
            "query": {"customId": "1"},
            "context": {"user": 7},
            "links": [],
            "lost": [{"pointer": "/output/0", "source": URL.format(0), "error": "gone"}],
            "truncated": [],
        },
    }


def test_links_are_told_and_are_no_loss() -> None:
    prediction = from_object({"id": "a", "status": "succeeded", "output": [LINK, "x", 1]}, Kind.PREDICTION)
    found = find(prediction.output, RULES)
    manifest = build(prediction, [], None, RECEIPT, STORED, links=found.links)
    data = events.build(manifest, link)["data"]
    assert (data["links"], data["lost"]) == ([{"pointer": "/output/0", "url": LINK}], [])


def test_of_very_many_links_the_first_ones_are_told_in_a_list() -> None:
    urls = [f"{LINK}/{'x' * 1000}/{number}" for number in range(2000)]
    prediction = from_object({"id": "a", "status": "succeeded", "output": urls}, Kind.PREDICTION)
    manifest = build(prediction, [], None, RECEIPT, STORED, links=find(urls, RULES).links)
    event = events.build(manifest, link)
    assert len(encode(event)) <= MAX_BYTES
    assert event["data"]["links"][0] == {"pointer": "/output/0", "url": urls[0]}
    assert "/data/links" in event["data"]["truncated"]


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("status", ["succeeded", "failed", "canceled", "aborted", "exploded"])
def test_the_type_names_kind_and_status(kind: Kind, status: str) -> None:
    assert event_of({"status": status}, kind=kind)["type"] == f"{kind.value}.{status}"


def test_an_event_has_the_deadline_of_what_has_one() -> None:
    assert event_of({"deadline": "2025-06-09T08:00:00Z"})["data"]["deadline"] == "2025-06-09T08:00:00Z"
    assert "deadline" not in event_of({})["data"]


def test_every_sample_makes_a_small_event_with_all_keys(samples: list[dict[str, Any]]) -> None:
    for sample in samples:
        event = event_of(sample["object"], kind=Kind(sample["kind"]))
        assert event.keys() == {"type", "timestamp", "data"}
        assert event["data"].keys() == DATA_KEYS
        assert len(encode(event)) <= MAX_BYTES
        assert event["data"]["truncated"] == []
        assert event["data"]["input"] == sample["object"].get("input")


def test_what_was_not_sent_is_null() -> None:
    data = data_of({})
    missing = ("model", "version", "input", "output", "error", "metrics", "created_at", "completed_at")
    assert [data[key] for key in missing] == [None] * len(missing)
    assert (data["files"], data["lost"], data["logs"]) == ([], [], "")


def test_logs_keep_their_last_64_kib() -> None:
    assert data_of({"logs": "x" * MAX_LOGS})["truncated"] == []
    data = data_of({"logs": "a" + "x" * (MAX_LOGS - 4) + "end\n"})
    assert data["logs"] == "x" * (MAX_LOGS - 4) + "end\n"
    assert data["truncated"] == ["/data/logs"]


@pytest.mark.parametrize("letter", ["é", "図", "\U0001f600"])
@pytest.mark.parametrize("shift", range(4))
def test_logs_are_never_cut_inside_a_letter(letter: str, shift: int) -> None:
    logs = letter * 40_000 + "x" * shift
    cut = data_of({"logs": logs})["logs"]
    assert logs.endswith(cut)
    assert MAX_LOGS - 4 < len(cut.encode()) <= MAX_LOGS


HUGE = "é" * 150_000


@pytest.mark.parametrize(
    ("raw", "pointer"),
    [
        ({"input": {"prompt": HUGE}}, "/data/input"),
        ({"output": [HUGE]}, "/data/output"),
        ({"output": HUGE}, "/data/output"),
        ({"error": HUGE}, "/data/error"),
        ({"metrics": {"x": HUGE}}, "/data/metrics"),
        ({"model": HUGE}, "/data/model"),
        ({"version": HUGE}, "/data/version"),
        ({"created_at": [HUGE]}, "/data/created_at"),
        ({"completed_at": HUGE}, "/data/completed_at"),
        # What takes 64 KiB in a text can take six times as much in JSON.
        ({"logs": "\0" * MAX_LOGS}, "/data/logs"),
        ({"logs": "\0" * MAX_LOGS * 2}, "/data/logs"),
    ],
    ids=range(11),
)
def test_a_huge_value_becomes_a_link_and_is_named(raw: dict[str, Any], pointer: str) -> None:
    event = event_of(raw)
    assert len(encode(event)) <= MAX_BYTES
    assert event["data"]["truncated"] == [pointer]
    assert event["data"][pointer.removeprefix("/data/")] == WHOLE


def test_only_as_much_is_cut_as_must_be_and_the_largest_first() -> None:
    data = data_of({"input": "i" * 100_000, "output": "o" * 120_000, "metrics": "m" * 110_000})
    assert data["truncated"] == ["/data/output"]
    assert (data["input"], data["metrics"]) == ("i" * 100_000, "m" * 110_000)


def test_everything_can_be_huge_at_once() -> None:
    keys = ("model", "version", "input", "output", "error", "metrics", "logs", "created_at", "completed_at")
    event = event_of(dict.fromkeys(keys, HUGE))
    assert len(encode(event)) <= MAX_BYTES
    assert set(event["data"]["truncated"]) == {f"/data/{key}" for key in keys}
    assert len(event["data"]["truncated"]) == len(keys)


BRIEF_FILE = {"name", "url", "media_type", "size"}
SIGNED = (
    "https://keep.example.com/files/predictions/ype2b3w02xrme0cqadzrms82nm/{}?expires=1789000000&signature="
)


def signed_link(name: str) -> str:
    """As long as those of a real deployment."""
    return SIGNED.format(name) + "s" * 43


def many(count: int, *, losses: int = 0, **more: Any) -> dict[str, Any]:
    """The data of an event of a prediction with `count` outputs."""
    raw = {"output": [URL.format(number) for number in range(count)], **more}
    encoded = encode(events.build(manifest_of(raw, losses=losses), signed_link))
    assert len(encoded) <= MAX_BYTES
    data: dict[str, Any] = json.loads(encoded)["data"]
    return data


def test_each_of_a_thousand_files_can_be_fetched_by_its_link() -> None:
    data = many(1000)
    assert [file["url"] for file in data["files"]] == [signed_link(f"output-{n}.png") for n in range(1000)]
    assert all(file.keys() == BRIEF_FILE for file in data["files"])
    assert data["output"] == [f"output-{number}.png" for number in range(1000)]
    assert data["truncated"] == ["/data/files"]


def test_other_values_are_cut_before_a_file_is_left_out() -> None:
    data = many(1000, input={"prompt": "x" * 200_000}, version="hidden")
    assert len(data["files"]) == 1000
    assert data["truncated"] == ["/data/files", "/data/input"]
    assert data["version"] == "hidden"


@pytest.mark.parametrize(("losses", "key"), [(0, "files"), (10_000, "lost"), (5_000, "files")])
def test_of_far_too_many_files_the_first_ones_are_told_in_a_list(losses: int, key: str) -> None:
    data = many(10_000, losses=losses)
    assert f"/data/{key}" in data["truncated"]
    first = {"files": {"name": f"output-{losses}.png"}, "lost": {"pointer": "/output/0", "error": "gone"}}
    assert isinstance(data["files"], list)
    assert isinstance(data["lost"], list)
    assert first[key].items() <= data[key][0].items()


def test_the_most_files_ever_seen_still_come_as_a_list(samples: list[dict[str, Any]]) -> None:
    longest = max((sample["object"] for sample in samples), key=lambda raw: len(json.dumps(raw)))
    data = data_of(longest)
    assert data["truncated"] == []
    assert len(data["files"]) == len(find(longest["output"], RULES).files)


def test_the_limits_are_those_of_the_contract() -> None:
    assert (MAX_BYTES, MAX_LOGS) == (262_144, 65_536)


@pytest.mark.parametrize("over", [0, 1])
def test_the_limit_is_exact(over: int) -> None:
    room = MAX_BYTES - len(encode(event_of({"input": ""}))) + over
    event = event_of({"input": "x" * room})
    assert event["data"]["truncated"] == (["/data/input"] if over else [])


@settings(deadline=None, max_examples=25)
@given(
    st.fixed_dictionaries({}, optional={key: st.integers(0, 300_000) for key in ("input", "output", "logs")})
)
def test_no_event_is_larger_than_256_kib_and_every_cut_is_named(sizes: dict[str, int]) -> None:
    raw = {key: "x" * size for key, size in sizes.items()}
    event = event_of(raw)
    assert len(encode(event)) <= MAX_BYTES
    cut = {key for key, value in raw.items() if event["data"][key] != value}
    assert {f"/data/{key}" for key in cut} == set(event["data"]["truncated"])
    assert event["data"].keys() == DATA_KEYS


def test_the_bytes_are_compact_utf_8() -> None:
    assert encode({"a": ["é", 1]}) == '{"a":["é",1]}'.encode()


@pytest.mark.parametrize("encoding", ["gzip", None])
def test_a_coding_that_a_file_still_has_is_told_and_only_then(encoding: str | None) -> None:
    prediction = from_object({"id": "a", "status": "succeeded", "output": URL.format(0)}, Kind.PREDICTION)
    [place] = find(prediction.output, RULES).files
    file = KeptFile(place.pointer, place.source, "output-0.csv", "text/csv", 8, "ab" * 32, encoding=encoding)
    manifest = build(prediction, [(place, file)], None, RECEIPT, STORED)
    written = json.loads(manifest.to_json())["files"]
    [told] = events.build(manifest, link)["data"]["files"]
    for one in (told, *written):
        assert ("encoding" in one, one.get("encoding")) == (encoding is not None, encoding)
    assert read(manifest.to_json()) == manifest


OURS, OTHER = (f"https://keep.example/files/output-{number}.png" for number in (0, 1))


@pytest.mark.parametrize(
    ("output", "given"),
    [
        (URL.format(0), OURS),
        ([URL.format(0), URL.format(1)], [OURS, OTHER]),
        ({"image": URL.format(0), "score": 0.5}, {"image": OURS, "score": 0.5}),
        ([{"a": [URL.format(0)]}, None, 7], [{"a": [OURS]}, None, 7]),
        ("data:image/png;base64,iVBORw0KGgo=", OURS),
        (["a", " text"], ["a", " text"]),
        (LINK, LINK),
        (None, None),
    ],
)
def test_in_the_format_of_replicate_links_to_ours_stand_where_its_own_stood(output: Any, given: Any) -> None:
    more = {"input": {"image": URL.format(0)}, "urls": {"get": "x"}, "logs": "x" * (MAX_LOGS + 1), "new": [1]}
    manifest = manifest_of({"output": output, **more})
    assert events.as_replicate_sends_it(manifest, link) == {
        "id": "a", "status": "succeeded", **more, "output": given
    }  # fmt: skip
