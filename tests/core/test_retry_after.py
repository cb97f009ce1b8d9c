import pytest

from app.core.answers import retry_after

NOW = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        (" 5 ", 5.0),
        ("0", 0.0),
        ("1000000000", 1e9),
        ("9" * 400, 1e15),
        ("Sun, 06 Nov 1994 08:50:37 GMT", 60.0),
        ("Sunday, 06-Nov-94 08:50:37 GMT", 60.0),
        ("Sun Nov  6 08:50:37 1994", 60.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
    ],
)
def test_seconds_and_dates_are_understood(value: str, seconds: float) -> None:
    assert retry_after(value, now=NOW) == seconds


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "abc",
        "-1",
        "+5",
        "1e9",
        "5.5",
        "5 s",
        "\u0665",
        "nan",
        "inf",
        "Sun, 99 Nov 1994 08:50:37 GMT",
        "Mon",
    ],
)
def test_anything_else_asks_for_nothing(value: str | None) -> None:
    assert retry_after(value, now=NOW) is None
