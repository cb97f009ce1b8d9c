import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import Rejected
from app.core.presentation import parse_range


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-499", (0, 500)),
        ("bytes=500-999", (500, 1000)),
        ("bytes=0-", (0, 1000)),
        ("bytes=999-", (999, 1000)),
        ("bytes=999-999", (999, 1000)),
        ("bytes=500-5000", (500, 1000)),
        ("bytes=500-9999999999999999999", (500, 1000)),
        ("bytes=-1", (999, 1000)),
        ("bytes=-1000", (0, 1000)),
        ("bytes=-5000", (0, 1000)),
        ("bytes=007-008", (7, 9)),
        (" bytes=0-0 ", (0, 1)),
        ("Bytes=0-0", (0, 1)),
    ],
)
def test_one_range_is_served(header: str, part: tuple[int, int]) -> None:
    assert parse_range(header, 1000) == part


@pytest.mark.parametrize(
    "header",
    [
        None, "", " ", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=0", "bytes=1-0", "bytes=5000-1",
        "bytes=0-0,5-5", "bytes=0-0,", "bytes=0--1", "bytes=--1", "bytes=+1-2", "bytes=0x1-2", "bytes= 0-1",
        "bytes=0 -1", "bytes=1.5-2", "bytes=\u0661-\u0662", "items=0-1", "bytes=0-1\n\n,", "0-1",
        f"bytes={'9' * 5000}-", f"bytes=0-{'9' * 5000}", f"bytes=-{'9' * 5000}", "\0", "\ud800",
    ],
)  # fmt: skip
def test_what_is_not_one_range_of_bytes_is_ignored(header: str | None) -> None:
    assert parse_range(header, 1000) is None


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("bytes=1000-", 1000),
        ("bytes=1000-1000", 1000),
        ("bytes=5000-6000", 1000),
        ("bytes=-0", 1000),
        ("bytes=0-", 0),
        ("bytes=0-0", 0),
        ("bytes=-5", 0),
        ("bytes=-0", 0),
    ],
)
def test_a_range_without_a_byte_is_not_satisfiable(header: str, size: int) -> None:
    with pytest.raises(Rejected) as caught:
        parse_range(header, size)
    assert (caught.value.status, caught.value.code) == (416, "range_not_satisfiable")
    assert str(size) in caught.value.message


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60))
def test_a_range_names_the_same_bytes_as_a_slice(size: int, first: int, last: int) -> None:
    data = bytes(range(size))
    forms = {
        f"bytes={first}-": data[first:],
        f"bytes=-{last}": data[max(size - last, 0) :],
        f"bytes={first}-{last}": data[first : last + 1] if last >= first else data,
    }
    for header, wanted in forms.items():
        try:
            start, end = parse_range(header, size) or (0, size)
        except Rejected:
            assert wanted == b""
        else:
            assert 0 <= start <= end <= size
            assert data[start:end] == wanted


@settings(deadline=None)
@given(st.text() | st.from_regex(r"\Abytes=[0-9, -]*\Z"), st.integers(0, 2**63))
def test_no_header_crashes(header: str, size: int) -> None:
    try:
        part = parse_range(header, size)
    except Rejected:
        return
    assert part is None or 0 <= part[0] < part[1] <= size
