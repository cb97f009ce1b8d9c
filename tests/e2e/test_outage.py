"""Redis away for longer than any time-out of ours, under traffic; `make soak` does it for ten minutes."""

from pathlib import Path

import pytest

from tests.e2e.outage import require_an_outage_loses_nothing
from tests.own_valkey import own_valkey

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("hangs", [False, True], ids=["killed", "stopped"])
def test_an_outage_under_traffic_loses_nothing_that_was_acknowledged(tmp_path: Path, *, hangs: bool) -> None:
    with own_valkey() as valkey:
        require_an_outage_loses_nothing(valkey, tmp_path, seconds=6, hangs=hangs)
