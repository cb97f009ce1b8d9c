"""How a prediction is known again whose creation nobody could note."""

from typing import Any

import pytest

from app.core.reconciling import fingerprint


@pytest.mark.parametrize(("one", "other"), [({"a": 2.0}, {"a": 2}), ({"a": 1, "b": 2}, {"b": 2, "a": 1})])
def test_the_same_input_is_known_however_it_is_written(one: Any, other: Any) -> None:
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint({**one, "a": 3})
