"""A page of a list without its long values: the rest is as it was, wherever its blocks begin and end."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import Permanent
from app.replicate.client import DEEP, Trimmed

LONG = 30
LONGEST = 16 << 10

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
_items = st.dictionaries(st.text(max_size=8), _values, max_size=5)
_pages = st.fixed_dictionaries({"next": st.none() | st.text(), "results": st.lists(_items, max_size=4)})


def trimmed(page: bytes, block: int, long: int = LONG) -> bytes:
    taking = Trimmed(long=long)
    for at in range(0, len(page), block):
        taking.feed(page[at : at + block])
    return bytes(taking.kept)


def spelt(value: Any, *, ascii_only: bool) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":")).encode("utf-8", "surrogatepass")


@given(_pages, st.integers(1, 50), st.booleans())
def test_what_is_long_becomes_null_and_all_else_stays(
    page: dict[str, Any],
    block: int,
    ascii_only: bool,  # noqa: FBT001 - hypothesis takes no other
) -> None:
    def short(value: Any) -> Any:
        return value if len(spelt(value, ascii_only=ascii_only)) <= LONG else None

    wanted = [{key: short(value) for key, value in item.items()} for item in page["results"]]
    found = trimmed(spelt(page, ascii_only=ascii_only), block)
    assert found == spelt(page | {"results": wanted}, ascii_only=ascii_only)


@given(_pages, st.integers(1, 50))
def test_white_space_makes_no_difference(page: dict[str, Any], block: int) -> None:
    assert json.loads(trimmed(json.dumps(page, indent=3).encode(), block, long=10**6)) == page


@given(st.binary() | st.text('{}[],:"\\a').map(str.encode), st.integers(1, 9))
def test_what_is_no_page_stays_as_it_is_unless_it_is_long(data: bytes, block: int) -> None:
    assert trimmed(data, block, long=10**6) == data
    assert len(trimmed(data, block)) <= len(data) + len(b"null")


@pytest.mark.parametrize(
    "value",
    [b"[{" * (2 << 20), b"[" * (4 << 20), b"[" * (2 << 20) + b"]" * (2 << 20),
     b"[" + b"[]," * (1 << 20) + b"0]", b"[" + b'{"a":["x",1]},' * 300_000 + b"0]",
     b"[" + b'"\\n",' * 800_000 + b"0]"],
    ids=["unclosed", "open", "closed", "pairs", "objects", "escapes"],
)  # fmt: skip
def test_four_megabytes_that_nest_in_any_way_take_no_time_and_are_cut(value: bytes) -> None:
    page = b'{"next":null,"results":[{"id":"a","output":' + value + b',"status":"succeeded"}]}'
    began = time.process_time()
    kept = trimmed(page, 1 << 16, LONGEST)
    assert time.process_time() - began < 2.5  # a step for each sign takes five seconds
    assert kept.startswith(b'{"next":null,"results":[{"id":"a","output":null')
    if value.count(b"[") == value.count(b"]"):
        assert json.loads(kept)["results"] == [{"id": "a", "output": None, "status": "succeeded"}]


def test_what_nests_deeper_than_it_may_becomes_null() -> None:
    def page(levels: int) -> bytes:
        return b'{"results":[{"a":' + b"[" * levels + b"]" * levels + b',"b":1}]}'

    for block in (1, 7, 10_000):
        assert trimmed(page(DEEP), block, LONGEST) == page(DEEP)
        assert trimmed(page(DEEP + 1), block, LONGEST) == b'{"results":[{"a":null,"b":1}]}'


def test_a_page_of_more_values_than_anybody_could_need_is_refused() -> None:
    with pytest.raises(Permanent) as caught:
        trimmed(b'{"results":[{' + b'"a":[],' * (1 << 20), 1 << 16, LONGEST)
    assert caught.value.code == "api_too_large"
