"""A page of a list without its long values: the rest is as it was, wherever its blocks begin and end."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.core.trimming import Trimmed

LONG = 30

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
