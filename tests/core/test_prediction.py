import gc
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.core.errors import Unusable
from app.core.names import Kind
from app.core.prediction import MAX_DEPTH, TERMINAL, Prediction, from_object, parse, parse_time
from tests.core.test_worst_cases import resident

ID = b"ype2b3w02xrme0cqadzrms82nm"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


def body(**more: Any) -> bytes:
    return json.dumps({"id": ID.decode(), "status": "succeeded", **more}).encode()


def prediction(**keys: Any) -> Prediction:
    return from_object({"id": "a", "status": "processing", **keys}, Kind.PREDICTION)


def nested(levels: int) -> bytes:
    """An object whose output makes it `levels` deep in all."""
    return body(output=0).replace(b"0}", b"[" * (levels - 1) + b"]" * (levels - 1) + b"}")


def test_every_sample_is_read_without_loss(samples: list[dict[str, Any]]) -> None:
    assert len(samples) > 100
    for sample in samples:
        seen = sample["object"]
        parsed = parse(json.dumps(seen).encode(), Kind(sample["kind"]))
        assert parsed.raw == seen
        assert (parsed.kind, parsed.id, parsed.status) == (sample["kind"], seen["id"], seen["status"])
        assert parsed.output == seen.get("output")
        assert parsed.model == seen.get("model")
        assert parsed.logs == (seen.get("logs") or "")
        assert parsed.is_terminal == (seen["status"] in TERMINAL)
        assert (parsed.completed_at is None) == (seen.get("completed_at") is None)


def test_the_recorded_delivery_is_read(recorded_delivery: dict[str, Any]) -> None:
    parsed = parse(recorded_delivery["body"].encode(), Kind.PREDICTION)
    assert parsed.is_terminal
    assert parsed.completed_at == datetime(2025, 6, 9, 7, 5, 41, 882143, tzinfo=UTC)


HOSTILE = [
    (b"", "not_json"),
    (b" ", "not_json"),
    (b"{", "not_json"),
    (body()[:-1], "not_json"),
    (body() + body(), "not_json"),
    (body().replace(b'"', b"'"), "not_json"),
    (body(logs="x").replace(b'"x"', b'"\n"'), "not_json"),
    (body(logs="x").replace(b'"x"', rb'"\x41"'), "not_json"),
    (body(metrics=7).replace(b"7", b"+7"), "not_json"),
    (body(metrics=7).replace(b"7", b"07"), "not_json"),
    (b"\xef\xbb\xbf" + body(), "not_json"),
    (body().decode().encode("utf-16-le"), "not_json"),
    (body().decode().encode("utf-16"), "not_utf8"),
    (body(logs="x").replace(b"x", b"\xff"), "not_utf8"),
    (body(logs="x").replace(b"x", b"\xed\xa0\x80"), "not_utf8"),
    (body(logs="x").replace(b"x", b"\xc0\xaf"), "not_utf8"),
    (body(logs="\ud800"), "lone_surrogate"),
    (body(logs="\udc00\ud800"), "lone_surrogate"),
    (body(**{"\udfff": 1}), "lone_surrogate"),
    (body(metrics=float("nan")), "bad_number"),
    (body(metrics=float("inf")), "bad_number"),
    (body(metrics=float("-inf")), "bad_number"),
    (body(metrics=7).replace(b"7", b"1e999"), "bad_number"),
    (body(metrics=7).replace(b"7", b"-1E+400"), "bad_number"),
    (body(metrics=7).replace(b"7", b"9" * 5000), "bad_number"),
    (b"9" * 5000, "bad_number"),
    (b"[" * 200_000, "too_deep"),
    (b'{"id":' * 200_000, "too_deep"),
    (b"[" * 200_000 + b"]" * 200_000, "too_deep"),
    (nested(MAX_DEPTH + 1), "too_deep"),
    (nested(800), "too_deep"),
    (b"[]", "not_an_object"),
    (b"null", "not_an_object"),
    (b"7", "not_an_object"),
    (b'"text"', "not_an_object"),
    (b"[" + body() + b"]", "not_an_object"),
    (b"{}", "bad_id"),
    (b'{"status": "succeeded"}', "bad_id"),
    (body(id=None), "bad_id"),
    (body(id=7), "bad_id"),
    (body(id=["a"]), "bad_id"),
    (body(id=""), "bad_id"),
    (body(id="a" * 65), "bad_id"),
    (body(id="../x"), "bad_id"),
    (body(id="a/b"), "bad_id"),
    (body(id="a.b"), "bad_id"),
    (body(id="a:b"), "bad_id"),
    (body(id="a b"), "bad_id"),
    (body(id="a\n"), "bad_id"),
    (body(id="a\0"), "bad_id"),
    (body(id="\u0661\u0662"), "bad_id"),
    (body(id="\u202ea"), "bad_id"),
    (b'{"id": "a"}', "bad_status"),
    (body(status=None), "bad_status"),
    (body(status=1), "bad_status"),
    (body(status=["succeeded"]), "bad_status"),
    (body(status=""), "bad_status"),
    (body(status="a\nb"), "bad_status"),
    (body(status="a" * 65), "bad_status"),
]


@pytest.mark.parametrize(("hostile", "code"), HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_not_usable_is_refused_with_its_reason(hostile: bytes, code: str) -> None:
    with pytest.raises(Unusable) as caught:
        parse(hostile, Kind.PREDICTION)
    assert caught.value.code == code
    assert len(caught.value.message) < 200


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_unusable(data: bytes) -> None:
    with pytest.raises(Unusable):
        parse(data, Kind.PREDICTION)


@settings(deadline=None)
@given(JSON)
def test_no_json_raises_anything_but_unusable(value: Any) -> None:
    try:
        parsed = parse(json.dumps(value).encode(), Kind.TRAINING)
    except Unusable:
        return
    assert parsed.raw == value


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {"id": JSON | st.just("a"), "status": JSON | st.sampled_from(sorted(TERMINAL))},
        optional=dict.fromkeys(("model", "version", "output", "logs", "completed_at", "created_at"), JSON),
    )
)
def test_odd_values_are_kept_and_never_crash_a_property(value: dict[str, Any]) -> None:
    try:
        parsed = parse(json.dumps(value).encode(), Kind.PREDICTION)
    except Unusable:
        return
    assert parsed.raw == value
    assert isinstance(parsed.logs, str)
    assert isinstance(parsed.is_terminal, bool)
    assert isinstance(parsed.progress_rank, str)
    assert parsed.model is None or isinstance(parsed.model, str)
    assert parsed.version is None or isinstance(parsed.version, str)
    assert parsed.completed_at is None or parsed.completed_at.tzinfo is UTC


def test_the_deepest_body_that_is_read_has_a_hundred_levels() -> None:
    assert MAX_DEPTH == 100
    assert parse(nested(100), Kind.PREDICTION).output is not None


@pytest.mark.parametrize("status", ["x", "a" * 64, "almost done", "succès"])
def test_a_status_that_we_do_not_know_is_kept(status: str) -> None:
    assert parse(body(status=status), Kind.PREDICTION).status == status


def test_numbers_and_letters_of_every_size_come_through() -> None:
    odd = {"big": 10**4000, "float": 0.1 + 0.2, "tiny": 5e-324, "minus": -0.0, "é\u2028\U0001f600": "\0\x7f"}
    assert parse(body(metrics=odd), Kind.PREDICTION).raw["metrics"] == odd


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2024-04-18T17:21:55Z", datetime(2024, 4, 18, 17, 21, 55, tzinfo=UTC)),
        ("2024-04-18T17:21:55+00:00", datetime(2024, 4, 18, 17, 21, 55, tzinfo=UTC)),
        ("2024-04-18t17:21:55z", datetime(2024, 4, 18, 17, 21, 55, tzinfo=UTC)),
        ("2024-04-18T19:21:55+02:00", datetime(2024, 4, 18, 17, 21, 55, tzinfo=UTC)),
        ("2024-02-29T00:00:00-00:30", datetime(2024, 2, 29, 0, 30, tzinfo=UTC)),
    ],
)
def test_times_are_read_as_utc(text: str, time: datetime) -> None:
    assert parse_time(text) == time


@pytest.mark.parametrize("digits", range(1, 10))
@pytest.mark.parametrize("zone", ["Z", "+00:00"])
def test_one_to_nine_fraction_digits_are_read(digits: int, zone: str) -> None:
    time = parse_time(f"2024-04-18T17:21:55.{'123456789'[:digits]}{zone}")
    assert time == datetime(2024, 4, 18, 17, 21, 55, int("123456789"[:digits].ljust(6, "0")[:6]), tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        None, 1713460915, 1.5, True, [], {}, "", "soon", "2024", "2024-04-18", "20240418T172155Z",
        "2024-04-18 17:21:55Z", "2024-04-18T17:21:55", "2024-04-18T17:21Z", "2024-04-18T17:21:55.Z",
        "2024-04-18T17:21:55.1234567890Z", "2024-04-18T17:21:55,5Z", "2024-04-18T17:21:55Z\n",
        "2024-02-30T00:00:00Z", "2023-02-29T00:00:00Z", "2024-13-01T00:00:00Z", "2024-01-01T24:00:01Z",
        "2024-12-31T23:59:60Z", "2024-01-01T00:00:00+24:00", "2024-01-01T00:00:00+0000",
        "0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00",
        "0002-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "-2024-04-18T17:21:55Z",
        "+2024-04-18T17:21:55Z", "\u0662\u0660\u0662\u0664-04-18T17:21:55Z", "\ud800", "9" * 10_000,
    ],
)  # fmt: skip
def test_what_is_not_a_time_is_none(value: Any) -> None:
    assert parse_time(value) is None


@settings(deadline=None)
@given(st.text() | st.from_regex(r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,18}(Z|[+-][0-9]{2}:[0-9]{2})\Z"))
@example("9999-12-31T23:59:59-23:59")
def test_no_text_crashes_the_reader_of_times(text: str) -> None:
    time = parse_time(text)
    assert time is None or time.tzinfo is UTC


@settings(deadline=None)
@given(st.datetimes(min_value=datetime(2, 1, 2), timezones=st.just(UTC)))  # noqa: DTZ001 - given by `timezones`
def test_a_time_as_python_writes_it_comes_back(time: datetime) -> None:
    assert parse_time(time.isoformat()) == time


ENDED = "2024-04-18T17:21:55Z"


@pytest.mark.parametrize(
    ("status", "completed_at"),
    [(word, time) for word in sorted(TERMINAL) for time in (None, ENDED)] + [("successful", ENDED)],
)
def test_it_ended_with_a_terminal_status_or_an_unknown_one_that_has_a_time(
    status: str, completed_at: str | None
) -> None:
    assert prediction(status=status, completed_at=completed_at).is_terminal


@pytest.mark.parametrize(
    ("status", "completed_at"),
    [
        ("starting", None),
        ("processing", None),
        ("processing", ENDED),
        ("successful", None),
        ("successful", ""),
        ("Succeeded", None),
    ],
)
def test_it_still_runs_otherwise(status: str, completed_at: str | None) -> None:
    assert not prediction(status=status, completed_at=completed_at).is_terminal


OLD_TO_NEW: list[dict[str, Any]] = [
    {"status": "starting"},
    {"status": "processing"},
    {"status": "processing", "logs": "a"},
    {"status": "processing", "logs": "a" * 11},
    {"status": "processing", "output": ["a"], "logs": ""},
    {"status": "processing", "output": ["a"], "logs": "a"},
    {"status": "processing", "output": ["a", "b"], "logs": ""},
    {"status": "processing", "output": ["a"] * 10, "logs": ""},
    {"status": "processing", "output": ["a"] * 11, "logs": None},
]


def test_progress_is_ordered_by_what_has_been_produced() -> None:
    ranks = [prediction(**keys).progress_rank for keys in OLD_TO_NEW]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(ranks)


def test_an_output_that_shrinks_is_older() -> None:
    for longer, shorter in ((["a", "b"], ["a"]), ("ab", "a"), ({"a": 1}, None), ("a", "")):
        newer, older = prediction(output=longer), prediction(output=shorter, logs="x" * 99)
        assert newer.progress_rank > older.progress_rank


def test_the_same_snapshot_has_the_same_rank_and_an_unknown_status_counts_as_running() -> None:
    assert prediction(output=["a"]).progress_rank == prediction(output=["b"]).progress_rank
    assert prediction(status="warming").progress_rank == prediction(status="processing").progress_rank


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_ranks_compare_as_text_as_their_lengths_do(one: int, other: int) -> None:
    ranks = [prediction(logs=" " * size).progress_rank for size in (one, other)]
    assert (ranks[0] < ranks[1]) == (one < other)


def test_a_time_outside_the_calendar_does_not_lose_the_prediction() -> None:
    parsed = parse(body(completed_at="9999-12-31T23:59:59-01:00"), Kind.PREDICTION)
    assert parsed.is_terminal
    assert parsed.completed_at is None
    assert parsed.raw["completed_at"] == "9999-12-31T23:59:59-01:00"


@pytest.mark.parametrize("values", [b"{},", b"[],", b'{"":[]},'])
def test_more_values_than_fit_into_memory_are_refused_before_they_are_made(values: bytes) -> None:
    body = b'{"id":"x","status":"succeeded","output":[' + values * 1_000_000 + b"0]}"
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    before = resident("RSS")
    with pytest.raises(Unusable) as raised:
        parse(body, Kind.PREDICTION)
    assert resident("HWM") - before < 16 << 20, "the values themselves take 256 MiB"
    assert raised.value.code == "too_many_values"


def test_a_text_that_does_not_end_is_looked_through_once() -> None:
    body = b'{"id":"x","output":"' + rb"\"" * 1_000_000 + b"," * 4_000_000  # no quote in it begins a text
    with pytest.raises(Unusable) as raised:
        parse(body, Kind.PREDICTION)
    assert raised.value.code == "not_json"


@pytest.mark.parametrize("text", [b"a,[{", rb"\",[{"])
def test_a_text_is_not_weighed_by_its_signs(text: bytes) -> None:
    body = b'{"id":"x","status":"succeeded","output":"' + text * 1_500_000 + b'"}'
    assert parse(body, Kind.PREDICTION).id == "x"
